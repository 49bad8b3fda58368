// One lane: the tail of every path, and the loop that the compiler turns into NEON or whatever the target has.
#pragma once

#include <cstdint>

namespace slideformer {
namespace {

inline float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

struct Portable {
  using Float = float;
  using Bits = uint32_t;  // a lane of 32 bits
  static constexpr int64_t width = 1;

  static Float set1(float x) { return x; }
  static Float load(const float* p) { return *p; }
  static Float load(const uint16_t* bf16) { return float_of(static_cast<uint32_t>(*bf16) << 16); }
  static void store(float* p, Float x) { *p = x; }

  static Float add(Float a, Float b) { return a + b; }
  static Float sub(Float a, Float b) { return a - b; }
  static Float mul(Float a, Float b) { return a * b; }
  static Float div(Float a, Float b) { return a / b; }
  static Float sqrt(Float a) { return __builtin_sqrtf(a); }
  static Float fma(Float a, Float b, Float c) { return __builtin_fmaf(a, b, c); }  // a * b + c, rounded once

  static Float load_planes(const uint16_t* hi, const int16_t* lo) {
    return float_of((static_cast<uint32_t>(*hi) << 16) + static_cast<uint32_t>(static_cast<int32_t>(*lo)));
  }
  static void store_planes(Float x, uint16_t* hi, int16_t* lo) {
    const uint32_t bits = bits_of(x);
    *hi = static_cast<uint16_t>((bits + 0x8000u) >> 16);
    *lo = static_cast<int16_t>(bits);
  }

  static Bits set1_bits(uint32_t x) { return x; }
  static Bits count_from(uint32_t first) { return first; }  // first, first + 1, ... a lane
  static Bits mul_bits(Bits a, Bits b) { return a * b; }    // modulo 2^32
  static Bits exclusive_or(Bits a, Bits b) { return a ^ b; }
  static Bits low_half(Bits x) { return x & 0xffffu; }
  template <int count>
  static Bits shift_right(Bits x) {
    return x >> count;
  }
  // The upper 16 bits of x + random, as bf16; of a NaN, whose payload could carry into the sign, those of x.
  static void store_rounded(Float x, Bits random, uint16_t* bf16) {
    *bf16 = static_cast<uint16_t>((bits_of(x) + (x == x ? random : 0u)) >> 16);
  }
};

}  // namespace
}  // namespace slideformer
