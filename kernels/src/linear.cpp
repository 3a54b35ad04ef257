// The operators Linear (codes), LinearAdd (the residual stream) and LinearHead (one token's floats).
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "custom_op.h"

namespace ofq {

namespace {

// OFQ_WEIGHTS says how weights of up to 4 bits are kept in memory: packed, or bytes.
bool keeps_packed() {
  const char* how = std::getenv("OFQ_WEIGHTS");
  if (!how || !std::strcmp(how, "packed")) return true;
  if (!std::strcmp(how, "bytes")) return false;
  refuse("OFQ_WEIGHTS is ", how, ", expected packed or bytes");
}

// What the three share: attributes inputs, width, weight_bits, half and in; the weights, the second input.
Weights read_weights(const Node& node, int parts, Grid in) {
  constexpr size_t WEIGHT = 1;
  const int inputs = node.integer("inputs", 1, MAX_INPUTS), outputs = node.integer("width", 1, MAX_OUTPUTS);
  const int bits = node.integer("weight_bits", 2, 8);
  const bool half = node.flag("half");
  if (half && bits == 8 && inputs % 4)
    refuse("attribute inputs is ", inputs, ", expected a multiple of 4 with 9-bit integers");
  const int64_t padded = round_up(outputs, PANEL) * parts * round_up(inputs, BLOCK);
  if (padded > int64_t(1) << 30) refuse("weights of ", padded, " bytes in memory, expected at most 2^30");
  const Tensor planes = node.constant(WEIGHT, {{ceil_div(int64_t(bits) * outputs * parts * inputs, 8)}}, Values::any);
  Weights weights = decode_weights(planes.as<uint8_t>(), bits, half, outputs, inputs, parts, in);
  if (keeps_packed() && kernels().panels == 1) pack_weights(weights, bits, half);  // others read several panels at once
  return weights;
}

int64_t input_width(const Weights& weights) { return int64_t(weights.parts) * weights.blocks * BLOCK; }
int64_t padded_outputs(const Weights& weights) { return int64_t(weights.panels) * PANEL; }

// Ascending or descending int16 [width, count], as `Thresholds` takes them.
Tensor read_thresholds(const Node& node, size_t input, const Port& port, int width, Dim count, bool ascends) {
  const Tensor tensor = node.constant(input, {{width, count}}, Values::any);
  const int64_t each = tensor.dims[1];
  for (int64_t c = 0; c < width; c++) {
    const int16_t* own = tensor.as<int16_t>() + c * each;
    const std::string channel = std::string("input ") + port.name + " of channel " + std::to_string(c);
    if (!(ascends ? std::is_sorted(own, own + each) : std::is_sorted(own, own + each, std::greater<int16_t>())))
      refuse(channel, " does not ", (ascends ? "ascend" : "descend"));
    for (int64_t j = 0; j < each; j++) {
      const bool is_beyond = own[j] == Thresholds::ALWAYS || (ascends && own[j] == Thresholds::NEVER);
      if (!is_beyond && std::abs(own[j]) > Thresholds::REACH)
        refuse(channel, " holds ", own[j], ", expected numbers within +-", Thresholds::REACH);
    }
  }
  return tensor;
}

class LinearKernel {
 public:
  static constexpr const char* NAME = "Linear";
  enum Input { X, WEIGHT, SCALE, BIAS, IN_STEP, OUT_RECIPROCAL, SHIFT, RISING, FALLING };
  static constexpr Port INPUTS[] = {{"codes", UINT8},          {"weight", UINT8},
                                    {"scale", FLOAT, false},   {"bias", FLOAT, false},
                                    {"in_step", FLOAT, false}, {"out_reciprocal", FLOAT, false},
                                    {"shift", FLOAT, false},   {"rising", INT16, false},
                                    {"falling", INT16, false}};
  static constexpr Port OUTPUTS[] = {{"codes", UINT8}};
  static constexpr int IN_PLACE = -1;

  explicit LinearKernel(const Node& node) {
    op_.in = node.grid("in");
    op_.out = node.grid("out");
    op_.tokens = node.integer("tokens", 1, MAX_INPUTS);
    op_.weights = read_weights(node, 1, op_.in);
    const int width = op_.weights.outputs, heads = node.integer("heads", 1, width);
    if (width % heads || (heads > 1 && width / heads % 4))
      refuse("attribute heads is ", heads, ": heads of ", width, " / ", heads, " channels, expected a multiple of 4");
    const bool gelu = node.flag("gelu");
    if (node.has(RISING)) {
      op_.finish = Finish::threshold_codes;
      read_thresholds(node);
      return;
    }
    if (node.has(FALLING)) refuse("input falling is there without rising");
    op_.finish = gelu ? Finish::gelu_codes : Finish::codes;
    const int64_t padded = padded_outputs(op_.weights);
    op_.scale = node.floats(SCALE, width, padded, Values::finite);
    op_.bias = node.floats(BIAS, width, padded, Values::finite);
    op_.in_step = node.token_steps(IN_STEP, op_.tokens);
    op_.out_reciprocal = node.head_steps(OUT_RECIPROCAL, op_.tokens, heads);
    op_.heads = op_.out_reciprocal.empty() ? 1 : heads;
    if (gelu) {
      op_.shift = node.has(SHIFT) ? node.floats(SHIFT, width, padded, Values::finite) : Aligned<float>(size_t(padded));
    } else if (node.has(SHIFT)) {
      refuse("input shift is there without gelu");
    }
  }

  void run(const Run& run) const {
    const Tensor x = run.codes(X, any_batch(), op_.tokens, input_width(op_.weights));
    LinearRun own{};
    own.batch = batch_of(x), own.x = x.as<uint8_t>(), own.x_image = x.image();
    own.codes = run.output<uint8_t>(0, {own.batch, tiles_of(op_.tokens), rows_of(op_.weights.outputs), LINE});
    if (!own.batch) return;
    run.parallel(kernels_, linear_units(kernels_, op_, own.batch), [&](size_t unit) { kernels_.linear(op_, own, unit); });
  }

  static void infer(const Shapes& shapes) { shapes.set(UINT8, {tiles_of(shapes.size("tokens")), rows_of(shapes.size("width")), LINE}); }

 private:
  // Below a falling threshold all falling ones up to it count, and so may rising ones: together no more than there are codes.
  void check_counts(const int16_t* rising, const int16_t* falling, int64_t count, int64_t channel) const {
    for (int64_t i = 0; i < count; i++) {
      if (falling[i] == Thresholds::ALWAYS) break;
      const int64_t below = std::upper_bound(rising, rising + op_.out.top(), int16_t(falling[i] - 1)) - rising;
      if (below + i + 1 > op_.out.top())
        refuse("inputs rising and falling of channel ", channel, " count ", below + i + 1, " thresholds, expected at most ", op_.out.top());
    }
  }

  void read_thresholds(const Node& node) {
    for (size_t input : {SCALE, BIAS, IN_STEP, OUT_RECIPROCAL, SHIFT})
      if (node.has(input)) refuse("inputs rising and ", INPUTS[input].name, " exclude each other");
    const int width = op_.weights.outputs;
    const Tensor rising = ofq::read_thresholds(node, RISING, INPUTS[RISING], width, op_.out.top(), true);
    Tensor falling;
    if (node.has(FALLING)) falling = ofq::read_thresholds(node, FALLING, INPUTS[FALLING], width, at_least(0), false);
    const int64_t count = falling.rank ? falling.dims[1] : 0;
    if (count > op_.out.top())
      refuse("input falling holds ", count, " thresholds a channel, expected at most ", op_.out.top());
    for (int64_t c = 0; c < width; c++) check_counts(rising.as<int16_t>() + c * op_.out.top(), falling.as<int16_t>() + c * count, count, c);
    const Weights& w = op_.weights;
    const int32_t reach = w.inputs * (w.wide ? 2 * w.largest + 1 : w.largest) * op_.in.top();  // 2^15 inputs at most: no overflow
    op_.thresholds = make_thresholds(rising.as<int16_t>(), op_.out.top(), falling.as<int16_t>(), int(count), width, reach);
  }

  Linear op_{};
  const Kernels& kernels_ = kernels();
};

class LinearAddKernel {
 public:
  static constexpr const char* NAME = "LinearAdd";
  enum Input { X, WEIGHT, SCALE, BIAS, RESIDUAL, IN_STEP };
  static constexpr Port INPUTS[] = {{"codes", UINT8}, {"weight", UINT8},   {"scale", FLOAT},
                                    {"bias", FLOAT},  {"residual", FLOAT}, {"in_step", FLOAT, false}};
  static constexpr Port OUTPUTS[] = {{"residual", FLOAT}};
  static constexpr int IN_PLACE = RESIDUAL;

  explicit LinearAddKernel(const Node& node) {
    op_.finish = Finish::residual;
    op_.in = node.grid("in");
    op_.tokens = node.integer("tokens", 1, MAX_INPUTS);
    const int parts = node.integer("parts", 1, 64);
    op_.weights = read_weights(node, parts, op_.in);
    const int64_t width = op_.weights.outputs, padded = padded_outputs(op_.weights);
    const Tensor scale = node.constant(SCALE, {{parts, width}}, Values::finite);
    op_.scale = Aligned<float>(size_t(parts * padded));
    for (int64_t part = 0; part < parts; part++)
      std::copy(scale.as<float>() + part * width, scale.as<float>() + (part + 1) * width, op_.scale.data() + part * padded);
    op_.bias = node.floats(BIAS, width, padded, Values::finite);
    op_.in_step = node.token_steps(IN_STEP, op_.tokens);
  }

  void run(const Run& run) const {
    const Tensor x = run.codes(X, any_batch(), op_.tokens, input_width(op_.weights));
    LinearRun own{};
    own.batch = batch_of(x), own.x = x.as<uint8_t>(), own.x_image = x.image();
    const int64_t tiles = tiles_of(op_.tokens), channels = padded_outputs(op_.weights);
    const Tensor residual = run.residual(RESIDUAL, any_batch(), op_.tokens, channels);
    if (residual.dims[0] != 1 && residual.dims[0] != own.batch)
      refuse("input residual has a batch of ", residual.dims[0], ", expected 1 or that of codes, ", own.batch);
    own.add = residual.as<float>(), own.add_image = residual.image();
    own.sum = run.output<float>(0, {own.batch, tiles, channels, LANES});
    if (!own.batch) return;
    run.parallel(kernels_, linear_units(kernels_, op_, own.batch), [&](size_t unit) { kernels_.linear(op_, own, unit); });
  }

  static void infer(const Shapes& shapes) {
    shapes.set(FLOAT, {tiles_of(shapes.size("tokens")), round_up(shapes.size("width"), PANEL), LANES});
  }

 private:
  Linear op_{};
  const Kernels& kernels_ = kernels();
};

class LinearHeadKernel {
 public:
  static constexpr const char* NAME = "LinearHead";
  enum Input { X, WEIGHT, SCALE, BIAS, ADD };
  static constexpr Port INPUTS[] = {{"codes", UINT8}, {"weight", UINT8}, {"scale", FLOAT}, {"bias", FLOAT}, {"add", FLOAT, false}};
  static constexpr Port OUTPUTS[] = {{"logits", FLOAT}};
  static constexpr int IN_PLACE = -1;

  explicit LinearHeadKernel(const Node& node) : adds_(node.has(ADD)) {
    op_.finish = Finish::head;
    op_.in = node.grid("in");
    op_.token = node.integer("token", 0, MAX_INPUTS - 1);
    op_.tokens = op_.token + 1;
    op_.weights = read_weights(node, 1, op_.in);
    const int64_t width = op_.weights.outputs, padded = padded_outputs(op_.weights);
    op_.scale = node.floats(SCALE, width, padded, Values::finite);
    op_.bias = node.floats(BIAS, width, padded, Values::finite);
  }

  void run(const Run& run) const {
    const Tensor x = run.codes(X, any_batch(), op_.tokens, input_width(op_.weights));
    LinearRun own{};
    own.batch = batch_of(x), own.x = x.as<uint8_t>(), own.x_image = x.image();
    if (adds_) {
      const Tensor add = run.input(ADD, {own.batch, op_.weights.outputs});
      own.add = add.as<float>(), own.add_image = add.image();
    }
    own.sum = run.output<float>(0, {own.batch, op_.weights.outputs});
    if (!own.batch) return;
    run.parallel(kernels_, linear_units(kernels_, op_, own.batch), [&](size_t unit) { kernels_.linear(op_, own, unit); });
  }

  static void infer(const Shapes& shapes) { shapes.set(FLOAT, {shapes.size("width")}); }

 private:
  Linear op_{};
  bool adds_;
  const Kernels& kernels_ = kernels();
};

}  // namespace

const OrtCustomOp* linear_op() { return custom_op<LinearKernel>(); }
const OrtCustomOp* linear_add_op() { return custom_op<LinearAddKernel>(); }
const OrtCustomOp* linear_head_op() { return custom_op<LinearHeadKernel>(); }

}  // namespace ofq
