// ONNX Runtime's C interface, as much of it as the library uses.
//
// Its functions arrive in a table of pointers that only ever grows: an index never changes once a version is released, so the
// table of API version 18 is the head of every later one. tests/test_kernels_interface.py reads this list and proves the indices
// by calling the functions of the installed runtime.
#pragma once
#include <cstddef>
#include <cstdint>

#ifdef _WIN32
#define OFQ_CALL __stdcall
#define OFQ_EXPORT extern "C" __declspec(dllexport)
#else
#define OFQ_CALL
#define OFQ_EXPORT extern "C" __attribute__((visibility("default")))
#endif

struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
struct OrtAllocator;
struct OrtOpAttr;
struct OrtCustomOp;

struct OrtApiBase {
  const void*(OFQ_CALL* GetApi)(uint32_t version);  // null for a version that the runtime does not have yet
  const char*(OFQ_CALL* GetVersionString)();
};

namespace ofq {

constexpr uint32_t ORT_VERSION = 18;  // the first one with allocators for kernels: ONNX Runtime 1.18

enum ErrorCode : int { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };
enum ElementType : int { FLOAT = 1, UINT8 = 2, INT16 = 5 };

// (index, name, result, arguments)
#define OFQ_ORT_FUNCTIONS(X)                                                                                              \
  X(0, CreateStatus, OrtStatus*, (int code, const char* message))                                                         \
  X(1, GetErrorCode, int, (const OrtStatus* status))                                                                      \
  X(2, GetErrorMessage, const char*, (const OrtStatus* status))                                                           \
  X(26, CreateCustomOpDomain, OrtStatus*, (const char* name, OrtCustomOpDomain** domain))                                 \
  X(27, CustomOpDomain_Add, OrtStatus*, (OrtCustomOpDomain * domain, const OrtCustomOp* op))                              \
  X(28, AddCustomOpDomain, OrtStatus*, (OrtSessionOptions * options, OrtCustomOpDomain* domain))                          \
  X(51, GetTensorMutableData, OrtStatus*, (OrtValue * value, void** data))                                                \
  X(57, CreateTensorTypeAndShapeInfo, OrtStatus*, (OrtTensorTypeAndShapeInfo * *info))                                    \
  X(58, SetTensorElementType, OrtStatus*, (OrtTensorTypeAndShapeInfo * info, int type))                                   \
  X(59, SetDimensions, OrtStatus*, (OrtTensorTypeAndShapeInfo * info, const int64_t* dims, size_t count))                 \
  X(60, GetTensorElementType, OrtStatus*, (const OrtTensorTypeAndShapeInfo* info, int* type))                             \
  X(61, GetDimensionsCount, OrtStatus*, (const OrtTensorTypeAndShapeInfo* info, size_t* count))                           \
  X(62, GetDimensions, OrtStatus*, (const OrtTensorTypeAndShapeInfo* info, int64_t* dims, size_t count))                  \
  X(63, GetSymbolicDimensions, OrtStatus*, (const OrtTensorTypeAndShapeInfo* info, const char** names, size_t count))     \
  X(65, GetTensorTypeAndShape, OrtStatus*, (const OrtValue* value, OrtTensorTypeAndShapeInfo** info))                     \
  X(75, AllocatorAlloc, OrtStatus*, (OrtAllocator * allocator, size_t bytes, void** memory))                              \
  X(76, AllocatorFree, OrtStatus*, (OrtAllocator * allocator, void* memory))                                              \
  X(85, KernelInfoGetAttribute_float, OrtStatus*, (const OrtKernelInfo* info, const char* name, float* value))            \
  X(86, KernelInfoGetAttribute_int64, OrtStatus*, (const OrtKernelInfo* info, const char* name, int64_t* value))          \
  X(90, KernelContext_GetInput, OrtStatus*, (const OrtKernelContext* context, size_t index, const OrtValue** value))      \
  X(91, KernelContext_GetOutput, OrtStatus*,                                                                              \
    (OrtKernelContext * context, size_t index, const int64_t* dims, size_t count, OrtValue** value))                      \
  X(93, ReleaseStatus, void, (OrtStatus * status))                                                                        \
  X(99, ReleaseTensorTypeAndShapeInfo, void, (OrtTensorTypeAndShapeInfo * info))                                          \
  X(132, ReleaseAllocator, void, (OrtAllocator * allocator))                                                              \
  X(230, KernelInfo_GetInputCount, OrtStatus*, (const OrtKernelInfo* info, size_t* count))                                \
  X(231, KernelInfo_GetOutputCount, OrtStatus*, (const OrtKernelInfo* info, size_t* count))                               \
  X(232, KernelInfo_GetInputName, OrtStatus*, (const OrtKernelInfo* info, size_t index, char* name, size_t* size))        \
  X(233, KernelInfo_GetOutputName, OrtStatus*, (const OrtKernelInfo* info, size_t index, char* name, size_t* size))       \
  X(244, KernelInfo_GetNodeName, OrtStatus*, (const OrtKernelInfo* info, char* name, size_t* size))                       \
  X(249, KernelInfoGetConstantInput_tensor, OrtStatus*,                                                                   \
    (const OrtKernelInfo* info, size_t index, int* is_constant, const OrtValue** value))                                  \
  X(268, ShapeInferContext_GetInputTypeShape, OrtStatus*,                                                                 \
    (const OrtShapeInferContext* context, size_t index, OrtTensorTypeAndShapeInfo** info))                                \
  X(269, ShapeInferContext_GetAttribute, OrtStatus*,                                                                      \
    (const OrtShapeInferContext* context, const char* name, const OrtOpAttr** attribute))                                 \
  X(270, ShapeInferContext_SetOutputTypeShape, OrtStatus*,                                                                \
    (const OrtShapeInferContext* context, size_t index, const OrtTensorTypeAndShapeInfo* info))                           \
  X(271, SetSymbolicDimensions, OrtStatus*, (OrtTensorTypeAndShapeInfo * info, const char** names, size_t count))         \
  X(272, ReadOpAttr, OrtStatus*, (const OrtOpAttr* attribute, int type, void* data, size_t size, size_t* out))            \
  X(274, KernelContext_ParallelFor, OrtStatus*,                                                                           \
    (const OrtKernelContext* context, void(OFQ_CALL * task)(void*, size_t), size_t total, size_t batches, void* data))    \
  X(278, KernelInfoGetAllocator, OrtStatus*, (const OrtKernelInfo* info, int memory_type, OrtAllocator** allocator))

// A function of a table, by its index.
template <class Function>
Function function_at(const void* table, size_t index) {
  using Any = void (*)();
  return reinterpret_cast<Function>(static_cast<const Any*>(table)[index]);
}

struct Api {
#define OFQ_FIELD(index, name, result, arguments) result(OFQ_CALL* name) arguments;
  OFQ_ORT_FUNCTIONS(OFQ_FIELD)
#undef OFQ_FIELD
  explicit Api(const void* table) {
#define OFQ_BIND(index, name, result, arguments) name = function_at<decltype(name)>(table, index);
    OFQ_ORT_FUNCTIONS(OFQ_BIND)
#undef OFQ_BIND
  }
};

}  // namespace ofq

// What the runtime asks of an operator. All callbacks are set but CreateKernel and KernelCompute, which V2 replaces.
struct OrtCustomOp {
  uint32_t version;
  void*(OFQ_CALL* CreateKernel)(const OrtCustomOp*, const void* api, const OrtKernelInfo*);
  const char*(OFQ_CALL* GetName)(const OrtCustomOp*);
  const char*(OFQ_CALL* GetExecutionProviderType)(const OrtCustomOp*);
  int(OFQ_CALL* GetInputType)(const OrtCustomOp*, size_t);
  size_t(OFQ_CALL* GetInputTypeCount)(const OrtCustomOp*);
  int(OFQ_CALL* GetOutputType)(const OrtCustomOp*, size_t);
  size_t(OFQ_CALL* GetOutputTypeCount)(const OrtCustomOp*);
  void(OFQ_CALL* KernelCompute)(void*, OrtKernelContext*);
  void(OFQ_CALL* KernelDestroy)(void*);
  int(OFQ_CALL* GetInputCharacteristic)(const OrtCustomOp*, size_t);
  int(OFQ_CALL* GetOutputCharacteristic)(const OrtCustomOp*, size_t);
  int(OFQ_CALL* GetInputMemoryType)(const OrtCustomOp*, size_t);
  int(OFQ_CALL* GetVariadicInputMinArity)(const OrtCustomOp*);
  int(OFQ_CALL* GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int(OFQ_CALL* GetVariadicOutputMinArity)(const OrtCustomOp*);
  int(OFQ_CALL* GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus*(OFQ_CALL* CreateKernelV2)(const OrtCustomOp*, const void* api, const OrtKernelInfo*, void** kernel);
  OrtStatus*(OFQ_CALL* KernelComputeV2)(void*, OrtKernelContext*);
  OrtStatus*(OFQ_CALL* InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int(OFQ_CALL* GetStartVersion)(const OrtCustomOp*);
  int(OFQ_CALL* GetEndVersion)(const OrtCustomOp*);
  size_t(OFQ_CALL* GetMayInplace)(int** inputs, int** outputs);
  void(OFQ_CALL* ReleaseMayInplace)(int* inputs, int* outputs);
  size_t(OFQ_CALL* GetAliasMap)(int** inputs, int** outputs);
  void(OFQ_CALL* ReleaseAliasMap)(int* inputs, int* outputs);
};
