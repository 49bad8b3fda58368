// Random bits for stochastic rounding: a hash of an element's index, the same in every instruction set.
//
// Chris Wellons' lowbias32 (the Hash Prospector, 2018) under a key; optim/rounding.py is its reference and says more.
#pragma once

#include <cstdint>

namespace slideformer {
namespace {

// 32 bits for each of V::width elements, the first of which has this index (modulo 2^32) in its layer.
template <class V>
[[gnu::always_inline]] inline typename V::Bits random_bits(uint64_t key, int64_t index) {
  typename V::Bits x = V::count_from(static_cast<uint32_t>(index) + static_cast<uint32_t>(key));
  x = V::mul_bits(V::exclusive_or(x, V::template shift_right<16>(x)), V::set1_bits(0x7feb352du));
  x = V::exclusive_or(x, V::set1_bits(static_cast<uint32_t>(key >> 32)));
  x = V::mul_bits(V::exclusive_or(x, V::template shift_right<15>(x)), V::set1_bits(0x846ca68bu));
  return V::exclusive_or(x, V::template shift_right<16>(x));
}

}  // namespace
}  // namespace slideformer
