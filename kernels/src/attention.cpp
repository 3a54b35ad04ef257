// The operator Attention: from codes of queries, keys and values to codes of their context.
#include <cmath>

#include "custom_op.h"

namespace ofq {

namespace {

// An allocator of the session; its memory is reused from run to run.
class Scratch {
 public:
  explicit Scratch(const Node& node) : allocator_(node.allocator()) {}
  Scratch(Scratch&& other) noexcept : allocator_(other.allocator_) { other.allocator_ = nullptr; }
  ~Scratch() {
    if (allocator_) ort().ReleaseAllocator(allocator_);
  }
  OrtAllocator* allocator() const { return allocator_; }

 private:
  OrtAllocator* allocator_;
};

// Memory of one run, on a cache line.
class Memory {
 public:
  Memory(OrtAllocator* allocator, size_t bytes) : allocator_(allocator) {
    expect_ok(ort().AllocatorAlloc(allocator, bytes + LINE, &memory_));
    if (!memory_) throw std::bad_alloc();
  }
  Memory(const Memory&) = delete;
  ~Memory() {
    if (OrtStatus* status = ort().AllocatorFree(allocator_, memory_)) ort().ReleaseStatus(status);
  }
  void* aligned() const { return reinterpret_cast<void*>(round_up(int64_t(reinterpret_cast<intptr_t>(memory_)), LINE)); }

 private:
  OrtAllocator* allocator_;
  void* memory_ = nullptr;
};

class AttentionKernel {
 public:
  static constexpr const char* NAME = "Attention";
  enum Input {
    Q, K, V, SCALE, CONTEXT_SCALE, CONTEXT_BIAS, P_RECIPROCAL,
    EXP_TABLE, QUERY_STEP, KEY_SHIFT, KEY_SHIFT_STEP, KEY_BIAS, OTHER, KEY_BIAS_STEP, ROW_SUM, P_STEP, OUT_RECIPROCAL, FORCED
  };
  static constexpr Port INPUTS[] = {{"q", UINT8},
                                    {"k", UINT8},
                                    {"v", UINT8},
                                    {"scale", FLOAT},
                                    {"context_scale", FLOAT},
                                    {"context_bias", FLOAT},
                                    {"p_reciprocal", FLOAT},
                                    {"exp_table", FLOAT, false},
                                    {"query_step", FLOAT, false},
                                    {"key_shift", FLOAT, false},
                                    {"key_shift_step", FLOAT, false},
                                    {"key_bias", FLOAT, false},
                                    {"other", UINT8, false},
                                    {"key_bias_step", FLOAT, false},
                                    {"row_sum", FLOAT, false},
                                    {"p_step", FLOAT, false},
                                    {"out_reciprocal", FLOAT, false},
                                    {"forced", UINT8, false}};
  static constexpr Port OUTPUTS[] = {{"codes", UINT8}, {"probabilities", UINT8, false}};
  static constexpr int IN_PLACE = -1;

  explicit AttentionKernel(const Node& node) : scratch_(node), is_forced_(node.has(FORCED)), gives_probabilities_(node.has_output(1)) {
    op_.heads = node.integer("heads", 1, 1024);
    op_.tokens = node.integer("tokens", 1, MAX_INPUTS);
    op_.rows = node.integer("rows", 1, MAX_INPUTS);
    op_.width = head_width(node, "width");
    op_.value_width = head_width(node, "value_width");
    op_.shared = node.flag("shared");
    op_.q = node.grid("q"), op_.out = node.grid("out");
    op_.k = signed_bytes(node, "k"), op_.v = signed_bytes(node, "v");
    op_.p_bits = node.integer("p_bits", 2, 8);
    const int64_t channels = int64_t(op_.heads) * op_.value_width;
    read_scale(node);
    op_.context_scale = node.floats(CONTEXT_SCALE, channels, channels, Values::finite);
    op_.context_bias = node.floats(CONTEXT_BIAS, channels, channels, Values::finite);
    if (node.has(ROW_SUM)) op_.row_sum = node.floats(ROW_SUM, channels, channels, Values::finite);
    op_.query_step = node.token_steps(QUERY_STEP, op_.rows);
    op_.p_step = node.token_steps(P_STEP, op_.rows);
    op_.out_reciprocal = node.token_steps(OUT_RECIPROCAL, op_.rows);
    const Tensor p = node.constant(P_RECIPROCAL, {{1}, {at_least(op_.rows)}}, Values::positive);
    op_.p_reciprocal = Aligned<float>(size_t(tiles_of(op_.rows) * LANES));
    for (size_t i = 0; i < op_.p_reciprocal.size(); i++)
      op_.p_reciprocal[i] = p.as<float>()[p.count() == 1 || int64_t(i) >= op_.rows ? 0 : i];
    read_exp_table(node);
    read_key_terms(node);
  }

  void run(const Run& run) const {
    const int64_t channels = int64_t(op_.heads) * op_.value_width, keys = int64_t(op_.heads) * op_.width;
    const Tensor q = run.codes(Q, any_batch(), op_.rows, op_.shared ? op_.width : keys);
    AttentionRun own{};
    own.batch = batch_of(q);
    const Tensor k = run.codes(K, own.batch, op_.tokens, keys), v = run.codes(V, own.batch, op_.tokens, channels);
    own.q = q.as<uint8_t>(), own.k = k.as<uint8_t>(), own.v = v.as<uint8_t>();
    own.q_image = q.image(), own.k_image = k.image(), own.v_image = v.image();
    if (op_.other_width) {
      const Tensor other = run.codes(OTHER, own.batch, op_.tokens, op_.other_width);
      own.other = other.as<uint8_t>(), own.other_image = other.image();
    }
    if (is_forced_) own.forced = run.input(FORCED, {own.batch, op_.heads, op_.rows, op_.tokens}).as<uint8_t>();
    own.out = run.output<uint8_t>(0, {own.batch, tiles_of(op_.rows), rows_of(channels), LINE});
    if (gives_probabilities_) own.probabilities = run.output<uint8_t>(1, {own.batch, op_.heads, op_.rows, op_.tokens});
    if (!own.batch) return;
    const Memory memory(scratch_.allocator(), attention_scratch(op_, own.batch));
    own.scratch = memory.aligned();
    run.parallel(kernels_, attention_keys_units(op_, own.batch), [&](size_t unit) { kernels_.attention_keys(op_, own, unit); });
    run.parallel(kernels_, attention_units(op_, own.batch), [&](size_t unit) { kernels_.attention(op_, own, unit); });
  }

  static void infer(const Shapes& shapes) {
    shapes.set(UINT8, {tiles_of(shapes.size("rows")), rows_of(shapes.size("heads") * shapes.size("value_width")), LINE});
  }

 private:
  // Heads begin on lines of codes.
  static int head_width(const Node& node, const char* attribute) {
    const int width = node.integer(attribute, 4, MAX_INPUTS);
    if (width % 4) refuse("attribute ", attribute, " is ", width, ", expected a multiple of 4");
    return width;
  }

  // Keys and values are the signed operand of a product.
  static Grid signed_bytes(const Node& node, const char* name) {
    const Grid grid = node.grid(name);
    if (!grid.is_signed && grid.bits == 8) refuse("grid ", name, " is unsigned with 8 bits, expected at most 7 bits or a sign");
    return grid;
  }

  void read_scale(const Node& node) {
    const int64_t lanes = tiles_of(op_.tokens) * LANES;
    const Tensor scale = node.constant(SCALE, {{1}, {op_.tokens}, {op_.tokens, op_.heads}}, Values::positive);
    op_.scale_varies = scale.rank == 2 || scale.dims[0] > 1;
    op_.scale = Aligned<float>(size_t(op_.scale_varies ? op_.heads * lanes : 1));
    for (int64_t head = 0; head < (op_.scale_varies ? op_.heads : 1); head++)
      for (int64_t t = 0; t < (op_.scale_varies ? op_.tokens : 1); t++)
        op_.scale[head * lanes + t] = scale.as<float>()[scale.rank == 2 ? t * op_.heads + head : t];
  }

  void read_exp_table(const Node& node) {
    if (!node.has(EXP_TABLE)) return;
    if (op_.scale_varies || !op_.query_step.empty()) refuse("input exp_table asks for one scale and no query_step");
    const Tensor table = node.constant(EXP_TABLE, {{64}, {80}}, Values::finite);
    const int64_t count = table.count();
    op_.exp_table = Aligned<float>(size_t(count));
    for (int64_t i = 0; i < count; i++) {
      const double power = i < 32 ? 32. * i : i < 64 ? i - 32. : 1024. * (i - 64), expected = std::exp2(-power * op_.scale[0]);
      const float value = table.as<float>()[i];
      if (std::abs(value - expected) > 1e-5 * expected + 1e-30)
        refuse("input exp_table holds ", value, " at ", i, ", expected ", expected);
      op_.exp_table[i] = value;
    }
  }

  void read_key_terms(const Node& node) {
    if (node.has(KEY_SHIFT)) {
      const Tensor shift = node.constant(KEY_SHIFT, {{op_.heads, op_.width}, {1, op_.width}}, Values::finite);
      op_.key_shift_heads = int(shift.dims[0]);
      op_.key_shift = Aligned<float>(size_t(shift.count()));
      std::copy(shift.as<float>(), shift.as<float>() + shift.count(), op_.key_shift.data());
      op_.key_shift_step = node.head_steps(KEY_SHIFT_STEP, op_.tokens, op_.heads);
    } else if (node.has(KEY_SHIFT_STEP)) {
      refuse("input key_shift_step is there without key_shift");
    }
    if (node.has(KEY_BIAS) != node.has(OTHER)) refuse("inputs key_bias and other belong together");
    if (node.has(KEY_BIAS)) {
      const Tensor bias = node.constant(KEY_BIAS, {{op_.heads, at_least(1)}}, Values::finite);
      if (bias.dims[1] > MAX_INPUTS) refuse("input key_bias is for ", bias.dims[1], " channels, expected at most ", MAX_INPUTS);
      op_.other = node.grid("other");
      op_.other_width = int(bias.dims[1]);
      op_.key_bias = Aligned<float>(size_t(bias.count()));
      std::copy(bias.as<float>(), bias.as<float>() + bias.count(), op_.key_bias.data());
      op_.key_bias_step = node.token_steps(KEY_BIAS_STEP, op_.tokens);
    } else if (node.has(KEY_BIAS_STEP)) {
      refuse("input key_bias_step is there without key_bias");
    }
  }

  Attention op_{};
  Scratch scratch_;
  bool is_forced_, gives_probabilities_;
  const Kernels& kernels_ = kernels();
};

}  // namespace

const OrtCustomOp* attention_op() { return custom_op<AttentionKernel>(); }

}  // namespace ofq
