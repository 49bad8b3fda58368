// Sixteen lanes as two registers of AVX2, with FMA: whole registers of 16-bit planes are loaded and stored.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace slideformer {
namespace {

struct Avx2 {
  struct Float {
    __m256 a, b;  // elements 0-7 and 8-15
  };
  struct Bits {
    __m256i a, b;
  };
  static constexpr int64_t width = 16;

  static Float set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static Float load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static Float load(const uint16_t* bf16) { return interleave(_mm256_setzero_si256(), load16(bf16)); }
  static void store(float* p, Float x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
  }

  static Float add(Float x, Float y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
  static Float sub(Float x, Float y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
  static Float mul(Float x, Float y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  static Float div(Float x, Float y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
  static Float sqrt(Float x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
  static Float fma(Float x, Float y, Float z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
  }

  // (hi << 16) + lo is the concatenation of hi and lo, with one borrowed from hi where lo is negative; and back.
  static Float load_planes(const uint16_t* hi, const int16_t* lo) {
    const __m256i low = load16(lo);
    return interleave(low, _mm256_add_epi16(load16(hi), _mm256_srai_epi16(low, 15)));
  }
  static void store_planes(Float x, uint16_t* hi, int16_t* lo) {
    const __m256i a = _mm256_castps_si256(x.a), b = _mm256_castps_si256(x.b), low_half = _mm256_set1_epi32(0xffff);
    const __m256i high = _mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16));
    const __m256i low = _mm256_packus_epi32(_mm256_and_si256(a, low_half), _mm256_and_si256(b, low_half));
    store16(hi, _mm256_sub_epi16(high, _mm256_srai_epi16(low, 15)));
    store16(lo, low);
  }

  static Bits set1_bits(uint32_t x) {
    const __m256i lanes = _mm256_set1_epi32(static_cast<int>(x));
    return {lanes, lanes};
  }
  static Bits count_from(uint32_t first) {
    const __m256i a = _mm256_add_epi32(set1_bits(first).a, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return {a, _mm256_add_epi32(a, _mm256_set1_epi32(8))};
  }
  static Bits mul_bits(Bits x, Bits y) { return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }
  static Bits exclusive_or(Bits x, Bits y) { return {_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}; }
  static Bits low_half(Bits x) {
    const __m256i mask = _mm256_set1_epi32(0xffff);
    return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
  }
  template <int count>
  static Bits shift_right(Bits x) {
    return {_mm256_srli_epi32(x.a, count), _mm256_srli_epi32(x.b, count)};
  }
  static void store_rounded(Float x, Bits random, uint16_t* bf16) {
    store16(bf16, _mm256_packus_epi32(rounded(x.a, random.a), rounded(x.b, random.b)));
  }

 private:
  // Packing and unpacking work within 128-bit halves; swapping the middle quarters makes them run in order.
  static constexpr int kSwapMiddle = 0b11011000;
  static __m256i load16(const void* p) {
    return _mm256_permute4x64_epi64(_mm256_loadu_si256(static_cast<const __m256i*>(p)), kSwapMiddle);
  }
  static void store16(void* p, __m256i x) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_permute4x64_epi64(x, kSwapMiddle));
  }
  // The upper half of x + random where x is a number, else of x.
  static __m256i rounded(__m256 x, __m256i random) {
    const __m256i is_number = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_ORD_Q));
    return _mm256_srli_epi32(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_and_si256(random, is_number)), 16);
  }
  static Float interleave(__m256i low, __m256i high) {
    return {_mm256_castsi256_ps(_mm256_unpacklo_epi16(low, high)),
            _mm256_castsi256_ps(_mm256_unpackhi_epi16(low, high))};
  }
};

}  // namespace
}  // namespace slideformer
