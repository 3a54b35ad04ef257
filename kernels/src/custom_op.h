// From a class of ours to what ONNX Runtime calls. The class K offers
//
//   NAME, INPUTS, OUTPUTS    the operator's name and its Ports
//   IN_PLACE                 the input whose memory the first output may take, or -1
//   K(const Node&)           reads attributes and constants, and checks them
//   run(const Run&) const    computes, on any number of threads at once
//   infer(const Shapes&)     tells the shape of the first output
//
// Exceptions end here: those of a kernel become a status with the node's name.
#pragma once
#include <climits>
#include <exception>
#include <memory>
#include <string>

#include "checks.h"

namespace ofq {

// Calls and returns null, or the status for what was thrown.
template <class Call>
OrtStatus* guarded(const std::string& title, const Call& call) noexcept {
  try {
    try {
      call();
      return nullptr;
    } catch (const std::exception& error) {
      return ort().CreateStatus(ORT_INVALID_ARGUMENT, (title + ": " + error.what()).c_str());
    }
  } catch (...) {  // not even memory for the message
    return ort().CreateStatus(ORT_FAIL, "a fused operator failed");
  }
}

template <class K>
struct Kernel {
  std::string title;
  K own;
};

template <class K>
const OrtCustomOp* custom_op() {
  static const OrtCustomOp op = [] {
    OrtCustomOp made{};
    made.version = ORT_VERSION;
    made.GetName = [](const OrtCustomOp*) -> const char* { return K::NAME; };
    made.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };  // CPU
    made.GetInputType = [](const OrtCustomOp*, size_t i) -> int { return K::INPUTS[i].type; };
    made.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return std::size(K::INPUTS); };
    made.GetOutputType = [](const OrtCustomOp*, size_t i) -> int { return K::OUTPUTS[i].type; };
    made.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return std::size(K::OUTPUTS); };
    made.GetInputCharacteristic = [](const OrtCustomOp*, size_t i) -> int { return K::INPUTS[i].is_required ? 0 : 1; };
    made.GetOutputCharacteristic = [](const OrtCustomOp*, size_t i) -> int { return K::OUTPUTS[i].is_required ? 0 : 1; };
    made.GetInputMemoryType = [](const OrtCustomOp*, size_t) -> int { return 0; };
    made.GetVariadicInputMinArity = [](const OrtCustomOp*) -> int { return 0; };
    made.GetVariadicInputHomogeneity = [](const OrtCustomOp*) -> int { return 0; };
    made.GetVariadicOutputMinArity = [](const OrtCustomOp*) -> int { return 0; };
    made.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) -> int { return 0; };
    made.CreateKernelV2 = [](const OrtCustomOp*, const void*, const OrtKernelInfo* info, void** kernel) -> OrtStatus* {
      *kernel = nullptr;
      const Node node(info, K::INPUTS);
      std::string title = std::string("ofq.") + K::NAME;
      if (OrtStatus* status = guarded(title, [&] { title += " '" + node.name() + "'"; })) return status;
      return guarded(title, [&] { *kernel = new Kernel<K>{title, K(node)}; });
    };
    made.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> OrtStatus* {
      const auto& own = *static_cast<const Kernel<K>*>(kernel);
      return guarded(own.title, [&] { own.own.run(Run(context, K::INPUTS)); });
    };
    made.KernelDestroy = [](void* kernel) { delete static_cast<Kernel<K>*>(kernel); };
    if (can_infer_shapes())
      made.InferOutputShapeFn = [](const OrtCustomOp*, OrtShapeInferContext* context) -> OrtStatus* {
        try {
          K::infer(Shapes(context));
        } catch (...) {  // without a shape the model loads as well; what is wrong with the node is said when its kernel is made
        }
        return nullptr;
      };
    made.GetStartVersion = [](const OrtCustomOp*) -> int { return 1; };
    made.GetEndVersion = [](const OrtCustomOp*) -> int { return INT_MAX; };
    made.GetMayInplace = [](int** inputs, int** outputs) -> size_t {
      static int input = K::IN_PLACE, output = 0;
      *inputs = &input, *outputs = &output;
      return K::IN_PLACE < 0 ? 0 : 1;
    };
    made.ReleaseMayInplace = [](int*, int*) {};
    made.GetAliasMap = [](int**, int**) -> size_t { return 0; };
    made.ReleaseAliasMap = [](int*, int*) {};
    return made;
  }();
  return &op;
}

// Each is defined by the file of its operators.
const OrtCustomOp* patches_op();
const OrtCustomOp* layer_norm_op();
const OrtCustomOp* linear_op();
const OrtCustomOp* linear_add_op();
const OrtCustomOp* linear_head_op();
const OrtCustomOp* attention_op();

}  // namespace ofq
