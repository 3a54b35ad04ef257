// The operator LayerNorm: codes of the normalised residual stream.
#include "custom_op.h"

namespace ofq {

namespace {

class LayerNormKernel {
 public:
  static constexpr const char* NAME = "LayerNorm";
  enum Input { X, GAMMA, BETA, RECIPROCAL };
  static constexpr Port INPUTS[] = {{"residual", FLOAT}, {"gamma", FLOAT}, {"beta", FLOAT}, {"reciprocal", FLOAT, false}};
  static constexpr Port OUTPUTS[] = {{"codes", UINT8}};
  static constexpr int IN_PLACE = -1;

  explicit LayerNormKernel(const Node& node) {
    op_.width = node.integer("width", 1, MAX_INPUTS);
    op_.tokens = node.integer("tokens", 1, MAX_INPUTS);
    op_.epsilon = node.positive("epsilon");
    op_.out = node.grid("out");
    op_.gamma = node.floats(GAMMA, op_.width, op_.width, Values::finite);
    op_.beta = node.floats(BETA, op_.width, op_.width, Values::finite);
    op_.reciprocal = node.token_steps(RECIPROCAL, op_.tokens);
  }

  void run(const Run& run) const {
    const Tensor x = run.residual(X, any_batch(), op_.tokens, op_.width);
    const int batch = batch_of(x);
    uint8_t* codes = run.output<uint8_t>(0, {batch, tiles_of(op_.tokens), rows_of(op_.width), LINE});
    if (!batch) return;
    const LayerNormRun own{batch, x.as<float>(), x.image(), codes};
    run.parallel(kernels_, layer_norm_units(op_, batch), [&](size_t unit) { kernels_.layer_norm(op_, own, unit); });
  }

  static void infer(const Shapes& shapes) { shapes.set(UINT8, {tiles_of(shapes.size("tokens")), rows_of(shapes.size("width")), LINE}); }

 private:
  LayerNorm op_{};
  const Kernels& kernels_ = kernels();
};

}  // namespace

const OrtCustomOp* layer_norm_op() { return custom_op<LayerNormKernel>(); }

}  // namespace ofq
