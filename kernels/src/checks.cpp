#include "checks.h"

#include <cmath>

namespace ofq {

namespace {

std::string type_name(int type) {
  switch (type) {
    case FLOAT: return "float32";
    case UINT8: return "uint8";
    case INT16: return "int16";
    default: return "type " + std::to_string(type);
  }
}

std::string described(const Tensor& tensor) {
  std::string text = type_name(tensor.type) + " [";
  for (size_t i = 0; i < tensor.rank; i++) text += (i ? ", " : "") + std::to_string(tensor.dims[i]);
  return text + "]";
}

std::string described(ElementType type, Dims dims) {
  std::string text = type_name(type) + " [";
  for (const Dim& dim : dims) {
    if (text.back() != '[') text += ", ";
    text += dim.kind == Dim::any ? dim.name : std::to_string(dim.value) + (dim.kind == Dim::at_least ? " or more" : "");
  }
  return text + "]";
}

bool fits(const Tensor& tensor, Dims dims) {
  if (tensor.rank != dims.size()) return false;
  const int64_t* own = tensor.dims;
  for (const Dim& dim : dims) {
    if (*own < 0 || (dim.kind == Dim::exactly && *own != dim.value) || (dim.kind == Dim::at_least && *own < dim.value)) return false;
    own++;
  }
  return true;
}

Tensor tensor_of(const OrtValue* value, const Port& port) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  expect_ok(ort().GetTensorTypeAndShape(value, &info));
  struct Guard {
    OrtTensorTypeAndShapeInfo* info;
    ~Guard() { ort().ReleaseTensorTypeAndShapeInfo(info); }
  } guard{info};
  Tensor tensor;
  expect_ok(ort().GetTensorElementType(info, &tensor.type));
  expect_ok(ort().GetDimensionsCount(info, &tensor.rank));
  if (tensor.rank > Tensor::MAX_RANK) refuse("input ", port.name, " is of rank ", tensor.rank, ", expected ", Tensor::MAX_RANK, " at most");
  expect_ok(ort().GetDimensions(info, tensor.dims, tensor.rank));
  expect_ok(ort().GetTensorMutableData(const_cast<OrtValue*>(value), &tensor.data));
  return tensor;
}

// A name that the runtime writes into memory of ours, after it has told the size.
template <class Get>
std::string read_name(const Get& get) {
  size_t size = 0;
  expect_ok(get(nullptr, &size));
  std::string name(size, '\0');
  if (size) expect_ok(get(name.data(), &size));
  return name.c_str();  // without the closing zero
}

void expect_values(const Tensor& tensor, const Port& port, Values values) {
  const int64_t count = tensor.count();
  for (int64_t i = 0; i < count; i++) {
    const float value = tensor.as<float>()[i];
    if (std::isfinite(value) && (values == Values::finite || value > 0.f)) continue;
    refuse("input ", port.name, " holds ", value, " at ", i, ", expected finite numbers", values == Values::positive ? " above 0" : "");
  }
}

}  // namespace

int64_t Tensor::count() const {
  int64_t product = 1;
  for (size_t i = 0; i < rank; i++) product *= dims[i];
  return product;
}

void expect_ok(OrtStatus* status) {
  if (!status) return;
  const std::string message = ort().GetErrorMessage(status);
  ort().ReleaseStatus(status);
  refuse(message);
}

std::string Node::name() const {
  const std::string own = read_name([&](char* name, size_t* size) { return ort().KernelInfo_GetNodeName(info_, name, size); });
  if (!own.empty()) return own;
  return read_name([&](char* name, size_t* size) { return ort().KernelInfo_GetOutputName(info_, 0, name, size); });
}

int Node::integer(const char* attribute, int64_t low, int64_t high) const {
  int64_t value = 0;
  if (OrtStatus* status = ort().KernelInfoGetAttribute_int64(info_, attribute, &value)) {
    ort().ReleaseStatus(status);
    refuse("attribute ", attribute, " is missing or no integer");
  }
  if (value < low || value > high)
    refuse("attribute ", attribute, " is ", value, ", expected ", low, " .. ", high);
  return int(value);
}

float Node::positive(const char* attribute) const {
  float value = 0.f;
  if (OrtStatus* status = ort().KernelInfoGetAttribute_float(info_, attribute, &value)) {
    ort().ReleaseStatus(status);
    refuse("attribute ", attribute, " is missing or no float");
  }
  if (!std::isfinite(value) || value <= 0.f)
    refuse("attribute ", attribute, " is ", value, ", expected a finite number above 0");
  return value;
}

Grid Node::grid(const std::string& name) const {
  return {integer((name + "_bits").c_str(), 2, 8), flag((name + "_signed").c_str())};
}

bool Node::has(size_t input) const {
  size_t count = 0;
  expect_ok(ort().KernelInfo_GetInputCount(info_, &count));
  if (input >= count) return false;
  return !read_name([&](char* name, size_t* size) { return ort().KernelInfo_GetInputName(info_, input, name, size); }).empty();
}

bool Node::has_output(size_t output) const {
  size_t count = 0;
  expect_ok(ort().KernelInfo_GetOutputCount(info_, &count));
  if (output >= count) return false;
  return !read_name([&](char* name, size_t* size) { return ort().KernelInfo_GetOutputName(info_, output, name, size); }).empty();
}

OrtAllocator* Node::allocator() const {
  constexpr int DEFAULT_MEMORY = 0;
  OrtAllocator* allocator = nullptr;
  expect_ok(ort().KernelInfoGetAllocator(info_, DEFAULT_MEMORY, &allocator));
  return allocator;
}

Tensor Node::constant(size_t input, std::initializer_list<Dims> shapes, Values values) const {
  const Port& port = inputs_[input];
  if (!has(input)) refuse("input ", port.name, " is missing");
  int is_constant = 0;
  const OrtValue* value = nullptr;
  expect_ok(ort().KernelInfoGetConstantInput_tensor(info_, input, &is_constant, &value));
  if (!is_constant || !value) refuse("input ", port.name, " is computed or fed, expected an initializer");
  const Tensor tensor = tensor_of(value, port);
  std::string expected;
  for (const Dims& dims : shapes) {
    if (tensor.type == port.type && fits(tensor, dims)) {
      if (values != Values::any) expect_values(tensor, port, values);
      return tensor;
    }
    expected += (expected.empty() ? "" : " or ") + described(port.type, dims);
  }
  refuse("input ", port.name, " is ", described(tensor), ", expected ", expected);
}

Aligned<float> Node::floats(size_t input, int64_t count, int64_t padded, Values values, float padding) const {
  const Tensor tensor = constant(input, {{count}}, values);
  Aligned<float> result(static_cast<size_t>(padded));
  for (int64_t i = 0; i < padded; i++) result[i] = i < count ? tensor.as<float>()[i] : padding;
  return result;
}

Aligned<float> Node::token_steps(size_t input, int64_t tokens) const { return head_steps(input, tokens, 0); }

Aligned<float> Node::head_steps(size_t input, int64_t tokens, int64_t heads) const {
  if (!has(input)) return {};
  const Tensor tensor = heads ? constant(input, {{at_least(tokens)}, {at_least(tokens), heads}}, Values::positive)
                              : constant(input, {{at_least(tokens)}}, Values::positive);
  const int64_t lanes = tiles_of(tokens) * LANES, rows = heads ? heads : 1, apart = tensor.rank == 2 ? heads : 0;
  if (rows * lanes > int64_t(1) << 26) refuse("steps of ", rows, " heads and ", tokens, " tokens are too many");
  Aligned<float> result(static_cast<size_t>(rows * lanes));
  for (int64_t head = 0; head < rows; head++)
    for (int64_t t = 0; t < lanes; t++)
      result[head * lanes + t] = t >= tokens ? 1.f : tensor.as<float>()[apart ? t * apart + head : t];
  return result;
}

Tensor Run::input(size_t index, Dims dims) const {
  const Port& port = inputs_[index];
  const OrtValue* value = nullptr;
  expect_ok(ort().KernelContext_GetInput(context_, index, &value));
  if (!value) refuse("input ", port.name, " is missing");
  const Tensor tensor = tensor_of(value, port);
  if (tensor.type != port.type || !fits(tensor, dims))
    refuse("input ", port.name, " is ", described(tensor), ", expected ", described(port.type, dims));
  return tensor;
}

Tensor Run::codes(size_t index, const Dim& batch, int64_t tokens, int64_t width) const {
  return input(index, {batch, at_least(tiles_of(tokens)), rows_of(width), LINE});
}

Tensor Run::residual(size_t index, const Dim& batch, int64_t tokens, int64_t width) const {
  return input(index, {batch, at_least(tiles_of(tokens)), round_up(width, PANEL), LANES});
}

void* Run::output_data(size_t index, std::initializer_list<int64_t> dims) const {
  OrtValue* value = nullptr;
  expect_ok(ort().KernelContext_GetOutput(context_, index, dims.begin(), dims.size(), &value));
  if (!value) refuse("output ", index, " is missing");
  void* data = nullptr;
  expect_ok(ort().GetTensorMutableData(value, &data));
  return data;
}

int batch_of(const Tensor& tensor) {
  if (tensor.dims[0] > MAX_BATCH) refuse("a batch of ", tensor.dims[0], ", expected at most ", MAX_BATCH);
  return int(tensor.dims[0]);
}

int64_t Shapes::size(const char* attribute) const {
  const OrtOpAttr* found = nullptr;
  expect_ok(ort().ShapeInferContext_GetAttribute(context_, attribute, &found));
  constexpr int INTEGER = 1;
  int64_t value = 0;
  size_t read = 0;
  expect_ok(ort().ReadOpAttr(found, INTEGER, &value, sizeof(value), &read));
  if (value < 1 || value > MAX_OUTPUTS) refuse("attribute ", attribute, " is no size");
  return value;
}

void Shapes::set(ElementType type, std::initializer_list<int64_t> rest) const {
  OrtTensorTypeAndShapeInfo* input = nullptr;  // the context's own, not to be released
  expect_ok(ort().ShapeInferContext_GetInputTypeShape(context_, 0, &input));
  size_t rank = 0;
  expect_ok(ort().GetDimensionsCount(input, &rank));
  if (rank == 0 || rank > Tensor::MAX_RANK) return;  // rank 0 stands for an unknown shape
  int64_t dims[Tensor::MAX_RANK];
  const char* names[Tensor::MAX_RANK];
  expect_ok(ort().GetDimensions(input, dims, rank));
  expect_ok(ort().GetSymbolicDimensions(input, names, rank));
  const std::string symbol = names[0] ? names[0] : "";
  if (symbol.empty() && dims[0] < 0) return;
  OrtTensorTypeAndShapeInfo* output = nullptr;
  expect_ok(ort().CreateTensorTypeAndShapeInfo(&output));
  struct Guard {
    OrtTensorTypeAndShapeInfo* info;
    ~Guard() { ort().ReleaseTensorTypeAndShapeInfo(info); }
  } guard{output};
  size_t count = 1;
  names[0] = symbol.c_str();
  for (int64_t dim : rest) names[count] = "", dims[count++] = dim;
  expect_ok(ort().SetTensorElementType(output, type));
  expect_ok(ort().SetDimensions(output, dims, count));
  expect_ok(ort().SetSymbolicDimensions(output, names, count));
  expect_ok(ort().ShapeInferContext_SetOutputTypeShape(context_, 0, output));
}

}  // namespace ofq
