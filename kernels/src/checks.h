// What nodes, runs and the inference of shapes are asked for, with every answer checked before memory is touched.
//
// Whatever is wrong becomes an exception of one line; custom_op.h puts the node's name before it and hands it to the runtime.
#pragma once
#include <atomic>
#include <exception>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "operators.h"
#include "ort.h"

namespace ofq {

// Limits of what attributes may ask for. With 2^15 inputs a sum of products of two bytes stays below 2^30 in magnitude (2^31
// for the 9-bit integers of wide weights), so neither sums nor differences of two sums overflow.
constexpr int64_t MAX_INPUTS = 1 << 15;    // that are summed over: channels, or keys
constexpr int64_t MAX_OUTPUTS = 1 << 20;
constexpr int64_t MAX_BATCH = 1 << 20;

struct Port {
  const char* name;
  ElementType type;
  bool is_required = true;
};

// The functions of the runtime that loaded the library; set when operators are registered.
const Api& ort();

// Whether it takes shapes from operators: until 1.23 it crashes where such a node leaves out an input.
bool can_infer_shapes();

// Throws what is wrong: texts and numbers in a row.
inline const std::string& as_text(const std::string& text) { return text; }
inline const char* as_text(const char* text) { return text; }
template <class Number>
std::string as_text(Number number) { return std::to_string(number); }
template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) { throw std::runtime_error((std::string() + ... + as_text(parts))); }

// Throws what a status says, and releases it.
void expect_ok(OrtStatus* status);

// A dimension that is expected: a number, at least a number, or any.
struct Dim {
  enum Kind { exactly, at_least, any } kind = exactly;
  int64_t value = 0;
  const char* name = "";
  Dim(int64_t value) : value(value) {}
  Dim(Kind kind, int64_t value, const char* name = "") : kind(kind), value(value), name(name) {}
};
inline Dim at_least(int64_t value) { return {Dim::at_least, value}; }
inline Dim any_batch() { return {Dim::any, 0, "batch"}; }

struct Tensor {
  static constexpr size_t MAX_RANK = 4;
  int type = 0;
  size_t rank = 0;
  int64_t dims[MAX_RANK] = {};
  void* data = nullptr;

  int64_t count() const;
  template <class T>
  const T* as() const { return static_cast<const T*>(data); }
  // From one image to the next, in elements; 0 where there is one for all.
  size_t image() const { return dims[0] > 1 ? size_t(count() / dims[0]) : 0; }
};
using Dims = std::initializer_list<Dim>;

enum class Values { any, finite, positive };  // positive ones are finite

// A node while its kernel is made.
class Node {
 public:
  Node(const OrtKernelInfo* info, const Port* inputs) : info_(info), inputs_(inputs) {}

  std::string name() const;  // or that of its first output, where it has none
  int integer(const char* attribute, int64_t low, int64_t high) const;
  bool flag(const char* attribute) const { return integer(attribute, 0, 1) == 1; }
  float positive(const char* attribute) const;
  Grid grid(const std::string& name) const;  // <name>_bits and <name>_signed
  bool has(size_t input) const;
  bool has_output(size_t output) const;
  OrtAllocator* allocator() const;  // of the session; the caller releases it

  // Constant inputs; `dims` may be several shapes, of which one has to fit.
  Tensor constant(size_t input, std::initializer_list<Dims> shapes, Values values) const;
  // float32 [count], padded.
  Aligned<float> floats(size_t input, int64_t count, int64_t padded, Values values, float padding = 0.f) const;
  // float32 [tokens or more] as [tiles * 16], padded with 1; empty where the input is absent.
  Aligned<float> token_steps(size_t input, int64_t tokens) const;
  // float32 [tokens or more] or [tokens or more, heads] as [heads][tiles * 16], padded with 1; empty where the input is absent.
  Aligned<float> head_steps(size_t input, int64_t tokens, int64_t heads) const;

 private:
  const OrtKernelInfo* info_;
  const Port* inputs_;
};

// One run of a node.
class Run {
 public:
  Run(OrtKernelContext* context, const Port* inputs) : context_(context), inputs_(inputs) {}

  Tensor input(size_t index, Dims dims) const;
  // uint8 codes or float32 residual of at least that many tiles.
  Tensor codes(size_t index, const Dim& batch, int64_t tokens, int64_t width) const;
  Tensor residual(size_t index, const Dim& batch, int64_t tokens, int64_t width) const;
  template <class T>
  T* output(size_t index, std::initializer_list<int64_t> dims) const { return static_cast<T*>(output_data(index, dims)); }

  // task(0) .. task(units - 1) on the session's threads.
  template <class Task>
  void parallel(const Kernels& kernels, size_t units, const Task& task) const {
    struct Job {
      const Kernels& kernels;
      const Task& task;
      std::atomic<bool> failed{false};
      std::exception_ptr error{};
    } job{kernels, task};
    const auto one = [](void* data, size_t unit) {
      Job& job = *static_cast<Job*>(data);
      if (job.failed) return;
      try {
        if (job.kernels.begin_task) job.kernels.begin_task();
        job.task(unit);
      } catch (...) {
        if (!job.failed.exchange(true)) job.error = std::current_exception();
      }
    };
    expect_ok(ort().KernelContext_ParallelFor(context_, one, units, 0, &job));
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  void* output_data(size_t index, std::initializer_list<int64_t> dims) const;

  OrtKernelContext* context_;
  const Port* inputs_;
};

// The number of images of a run, checked.
int batch_of(const Tensor& tensor);

// A node while the runtime asks for the shapes of its outputs.
class Shapes {
 public:
  explicit Shapes(OrtShapeInferContext* context) : context_(context) {}

  // An attribute, for shapes; throws where it is missing or no size.
  int64_t size(const char* attribute) const;
  // The first output is [batch of the first input, rest...]; says nothing where the batch is not known.
  void set(ElementType type, std::initializer_list<int64_t> rest) const;

 private:
  OrtShapeInferContext* context_;
};

}  // namespace ofq
