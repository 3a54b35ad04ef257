// The operator Patches: codes of an image.

#include "custom_op.h"

namespace ofq {

namespace {

class PatchesKernel {
 public:
  static constexpr const char* NAME = "Patches";
  enum Input { IMAGE, RECIPROCAL, BEFORE };
  static constexpr Port INPUTS[] = {{"image", FLOAT}, {"reciprocal", FLOAT}, {"before", FLOAT, false}};
  static constexpr Port OUTPUTS[] = {{"codes", UINT8}};
  static constexpr int IN_PLACE = -1;

  explicit PatchesKernel(const Node& node) {
    op_.channels = node.integer("channels", 1, MAX_INPUTS);
    op_.patch = node.integer("patch", 1, MAX_IMAGE);
    op_.first = node.integer("first", 0, MAX_INPUTS - 1);
    op_.tokens = node.integer("tokens", op_.first + 1, MAX_INPUTS);
    op_.parts = node.integer("parts", 1, op_.channels);
    op_.out = node.grid("out");
    const int patches = op_.tokens - op_.first;
    int side = 1;
    while (side * side < patches) side++;
    if (side * side != patches)
      refuse("attributes tokens and first leave ", patches, " patches, which fill no square");
    if (side * op_.patch > MAX_IMAGE)
      refuse("attribute patch is ", op_.patch, ": an image of ", side * op_.patch, " pixels a side, expected at most ", MAX_IMAGE);
    op_.size = side * op_.patch;
    if (op_.channels % op_.parts)
      refuse("attribute parts is ", op_.parts, ": ", op_.channels, " channels cannot be cut into them");
    if (width(op_.channels, op_.parts, op_.patch) > MAX_INPUTS)
      refuse("a part of a patch has ", width(op_.channels, op_.parts, op_.patch), " numbers, expected at most ", MAX_INPUTS);
    const Tensor reciprocal = node.constant(RECIPROCAL, {{1}, {op_.channels}}, Values::positive);
    op_.reciprocal = Aligned<float>(size_t(op_.channels));
    for (int c = 0; c < op_.channels; c++) op_.reciprocal[c] = reciprocal.as<float>()[reciprocal.count() == 1 ? 0 : c];
    if (!node.has(BEFORE)) return;
    const Tensor before = node.constant(BEFORE, {{op_.size, op_.size}}, Values::finite);
    op_.before = Aligned<float>(size_t(before.count()));
    std::copy(before.as<float>(), before.as<float>() + before.count(), op_.before.data());
  }

  void run(const Run& run) const {
    const Tensor image = run.input(IMAGE, {any_batch(), op_.channels, op_.size, op_.size});
    const int batch = batch_of(image);
    const int64_t rows = op_.parts * rows_of(width(op_.channels, op_.parts, op_.patch));
    uint8_t* codes = run.output<uint8_t>(0, {batch, tiles_of(op_.tokens), rows, LINE});
    if (!batch) return;
    const PatchesRun own{batch, image.as<float>(), codes};
    run.parallel(kernels_, patches_units(op_, batch), [&](size_t unit) { kernels_.patches(op_, own, unit); });
  }

  static void infer(const Shapes& shapes) {
    const int64_t parts = shapes.size("parts"), inputs = width(shapes.size("channels"), parts, shapes.size("patch"));
    if (inputs <= MAX_INPUTS) shapes.set(UINT8, {tiles_of(shapes.size("tokens")), parts * rows_of(inputs), LINE});
  }

 private:
  static int64_t width(int64_t channels, int64_t parts, int64_t patch) { return channels / parts * patch * patch; }

  Patches op_{};
  const Kernels& kernels_ = kernels();
};

}  // namespace

const OrtCustomOp* patches_op() { return custom_op<PatchesKernel>(); }

}  // namespace ofq
