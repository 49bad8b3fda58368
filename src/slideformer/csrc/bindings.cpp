// The Python module slideformer._core: checks what it is given, releases the GIL, calls the loops.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <utility>

#include "adamw.h"
#include "copy.h"
#include "isa.h"
#include "planes.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace slideformer {
namespace {

// Any one-dimensional, contiguous CPU array; its dtype is checked here because C++ has no type for bf16.
using Flat = nb::ndarray<nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Spans = nb::ndarray<const int64_t, nb::shape<-1, 4>, nb::c_contig, nb::device::cpu>;

[[noreturn]] void fail(const std::string& message) { throw nb::value_error(message.c_str()); }

bool is_bf16(const Flat& array) {
  return array.dtype() == nb::dlpack::dtype{static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat), 16, 1};
}

void require(bool right_type, const Flat& array, const char* name, const char* type, size_t count) {
  if (!right_type) throw nb::type_error((std::string(name) + " must be " + type).c_str());
  if (array.shape(0) != count) {
    fail(std::string(name) + " has " + std::to_string(array.shape(0)) + " elements; expected " + std::to_string(count));
  }
}

uint16_t* hi_data(const Flat& array, size_t count) {
  require(is_bf16(array), array, "hi", "bfloat16", count);
  return static_cast<uint16_t*>(array.data());
}

int16_t* lo_data(const Flat& array, size_t count) {
  require(array.dtype() == nb::dtype<int16_t>(), array, "lo", "int16", count);
  return static_cast<int16_t*>(array.data());
}

float* float_data(const Flat& array, const char* name, size_t count) {
  require(array.dtype() == nb::dtype<float>(), array, name, "float32", count);
  return static_cast<float*>(array.data());
}

// fp32 or bf16, both moments alike.
MomentType moment_type(const Flat& exp_avg, const Flat& exp_avg_sq, size_t count) {
  const bool bf16 = is_bf16(exp_avg);
  for (const auto& [array, name] : {std::pair{&exp_avg, "exp_avg"}, std::pair{&exp_avg_sq, "exp_avg_sq"}}) {
    const bool right = bf16 ? is_bf16(*array) : array->dtype() == nb::dtype<float>();
    require(right, *array, name, bf16 ? "bfloat16, as exp_avg" : "float32", count);
  }
  return bf16 ? MomentType::kBf16 : MomentType::kFloat;
}

int checked_threads(int num_threads) {
  if (num_threads < 1) fail("num_threads is " + std::to_string(num_threads) + "; at least 1 is needed");
  return num_threads;
}

GradType grad_type(const std::optional<Flat>& grad) {
  if (!grad) return GradType::kNone;
  if (is_bf16(*grad)) return GradType::kBf16;
  if (grad->dtype() == nb::dtype<float>()) return GradType::kFloat;
  throw nb::type_error("grad must be bfloat16 or float32");
}

// Spans ascend, do not overlap, and stay inside the layer and, where there is one, the gradient: threads rely on it.
void check_spans(const Span* spans, size_t span_count, int64_t count, const std::optional<Flat>& grad) {
  const int64_t grad_count = grad ? grad->shape(0) : 0;
  int64_t previous_stop = 0;
  for (size_t k = 0; k < span_count; ++k) {
    const auto [start, stop, grad_start, decay] = spans[k];
    const bool ordered = previous_stop <= start && start <= stop && stop <= count;
    const bool grad_inside = grad_start >= 0 && grad_start <= grad_count - (stop - start);
    if (!ordered || !(grad_inside || grad_start == -1 || !grad) || (decay & ~int64_t{1})) {
      fail("span " + std::to_string(k) + " (start " + std::to_string(start) + ", stop " + std::to_string(stop) +
           ", grad_start " + std::to_string(grad_start) + ", decay " + std::to_string(decay) +
           ") overlaps the one before it, or leaves the " + std::to_string(count) + " parameters or the " +
           std::to_string(grad_count) + " gradients");
    }
    previous_stop = stop;
  }
}

void bound_adamw(const Flat& hi, const Flat& lo, const Flat& exp_avg, const Flat& exp_avg_sq,
                 const std::optional<Flat>& grad, const Spans& spans, float lerp_weight, float beta2,
                 float square_weight, float negative_step_size, float bias_correction2_sqrt, float epsilon, float decay,
                 float grad_scale, uint64_t rounding_key, int num_threads) {
  const size_t count = hi.shape(0);
  const AdamWArrays arrays{hi_data(hi, count),
                           lo_data(lo, count),
                           exp_avg.data(),
                           exp_avg_sq.data(),
                           grad ? grad->data() : nullptr,
                           grad_type(grad),
                           moment_type(exp_avg, exp_avg_sq, count)};
  const AdamWScalars scalars{lerp_weight, beta2, square_weight, negative_step_size, bias_correction2_sqrt,
                             epsilon,     decay, grad_scale,    rounding_key};
  const Span* first = reinterpret_cast<const Span*>(spans.data());
  check_spans(first, spans.shape(0), count, grad);
  const AdamWKernel kernel = selected_isa().kernel;
  checked_threads(num_threads);

  nb::gil_scoped_release release;
  adamw(arrays, first, spans.shape(0), scalars, kernel, num_threads);
}

void bound_split(const Flat& master, const Flat& hi, const Flat& lo, int num_threads) {
  const size_t count = master.shape(0);
  const float* in = float_data(master, "master", count);
  uint16_t* high = hi_data(hi, count);
  int16_t* low = lo_data(lo, count);
  checked_threads(num_threads);
  nb::gil_scoped_release release;
  split(in, high, low, count, num_threads);
}

void bound_join(const Flat& hi, const Flat& lo, const Flat& out, int num_threads) {
  const size_t count = out.shape(0);
  const uint16_t* high = hi_data(hi, count);
  const int16_t* low = lo_data(lo, count);
  float* to = float_data(out, "out", count);
  checked_threads(num_threads);
  nb::gil_scoped_release release;
  join(high, low, to, count, num_threads);
}

void bound_copy(const Flat& from, const Flat& to, int num_threads) {
  const nb::dlpack::dtype bytes = nb::dtype<uint8_t>();
  require(from.dtype() == bytes, from, "from_", "uint8", from.shape(0));
  require(to.dtype() == bytes, to, "to", "uint8", from.shape(0));
  checked_threads(num_threads);
  nb::gil_scoped_release release;
  copy(static_cast<const char*>(from.data()), static_cast<char*>(to.data()), from.shape(0), num_threads);
}

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const Isa& isa : available_isas()) names.push_back(isa.name);
  return names;
}

}  // namespace
}  // namespace slideformer

NB_MODULE(_core, module) {
  using namespace slideformer;
  // noconvert: a conversion would copy, and writes to the copy would be lost.
  module.def("split", &bound_split, nb::arg("master").noconvert(), nb::arg("hi").noconvert(), nb::arg("lo").noconvert(),
             "num_threads"_a);
  module.def("join", &bound_join, nb::arg("hi").noconvert(), nb::arg("lo").noconvert(), nb::arg("out").noconvert(),
             "num_threads"_a);
  module.def("adamw", &bound_adamw, nb::arg("hi").noconvert(), nb::arg("lo").noconvert(),
             nb::arg("exp_avg").noconvert(), nb::arg("exp_avg_sq").noconvert(), nb::arg("grad").noconvert().none(),
             nb::arg("spans").noconvert(), nb::kw_only(), "lerp_weight"_a, "beta2"_a, "square_weight"_a,
             "negative_step_size"_a, "bias_correction2_sqrt"_a, "epsilon"_a, "decay"_a, "grad_scale"_a,
             "rounding_key"_a = 0, "num_threads"_a);
  module.def("copy", &bound_copy, nb::arg("from_").noconvert(), nb::arg("to").noconvert(), "num_threads"_a);
  module.def("selected_isa", [] { return selected_isa().name; });
  module.def("available_isas", &isa_names);
}
