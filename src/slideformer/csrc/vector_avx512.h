// Sixteen lanes of AVX-512 F.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace slideformer {
namespace {

struct Avx512 {
  using Float = __m512;
  using Bits = __m512i;
  static constexpr int64_t width = 16;

  static Float set1(float x) { return _mm512_set1_ps(x); }
  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static Float load(const uint16_t* bf16) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load16(bf16)), 16));
  }
  static void store(float* p, Float x) { _mm512_storeu_ps(p, x); }

  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
  static Float sqrt(Float a) { return _mm512_sqrt_ps(a); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }

  static Float load_planes(const uint16_t* hi, const int16_t* lo) {
    const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(load16(hi)), 16);
    return _mm512_castsi512_ps(_mm512_add_epi32(high, _mm512_cvtepi16_epi32(load16(lo))));
  }
  static void store_planes(Float x, uint16_t* hi, int16_t* lo) {
    const __m512i bits = _mm512_castps_si512(x);
    store16(hi, _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x8000)), 16));
    store16(lo, bits);
  }

  static Bits set1_bits(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  static Bits count_from(uint32_t first) {
    return _mm512_add_epi32(set1_bits(first), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  }
  static Bits mul_bits(Bits a, Bits b) { return _mm512_mullo_epi32(a, b); }
  static Bits exclusive_or(Bits a, Bits b) { return _mm512_xor_si512(a, b); }
  static Bits low_half(Bits x) { return _mm512_and_si512(x, _mm512_set1_epi32(0xffff)); }
  template <int count>
  static Bits shift_right(Bits x) {
    return _mm512_srli_epi32(x, count);
  }
  static void store_rounded(Float x, Bits random, uint16_t* bf16) {
    const __mmask16 is_number = _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q);
    const __m512i bits = _mm512_castps_si512(x);
    store16(bf16, _mm512_srli_epi32(_mm512_mask_add_epi32(bits, is_number, bits, random), 16));
  }

 private:
  static __m256i load16(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  // Stores the low half of each 32-bit lane.
  static void store16(void* p, __m512i x) { _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(x)); }
};

}  // namespace
}  // namespace slideformer
