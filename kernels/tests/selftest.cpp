// Every instruction set that can run here against plain C++, bit for bit, on random and extreme operators.
//
//   ofq_selftest            compare; exit status 1 and a line per difference. AMX is compared without a processor that has it:
//                           trapped_tiles.h
//   ofq_selftest time       also print the least time of the operators of DeiT-T and DeiT-S in microseconds
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>

#include "../src/shapes.h"
#include "trapped_tiles.h"

#ifdef OFQ_HAVE_AMX
namespace ofq {
extern const Kernels kernels_amx;
}
#endif

using namespace ofq;

namespace {

std::mt19937 generator(1);
int whole(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }
float real(float low, float high) { return std::uniform_real_distribution<float>(low, high)(generator); }
Aligned<float> reals(size_t count, float low, float high) {
  Aligned<float> values(count);
  for (size_t i = 0; i < count; i++) values[i] = real(low, high);
  return values;
}

// extreme: the largest and the smallest code, or the largest alone; weights likewise, so that sums come near what their types hold
Aligned<uint8_t> random_codes(int64_t batch, int tokens, int width, Grid grid, bool extreme) {
  Aligned<uint8_t> codes(batch * tiles_of(tokens) * rows_of(width) * LINE);
  const int least = whole(0, 1);
  for (size_t i = 0; i < codes.size(); i++) codes[i] = uint8_t(extreme ? (whole(least, 1) ? grid.top() : 0) : whole(0, grid.top()));
  return codes;
}

Weights random_weights(int outputs, int inputs, int parts, int bits, bool half, Grid in, bool extreme) {
  std::vector<uint8_t> planes(ceil_div(int64_t(bits) * outputs * inputs * parts, 8));
  const int least = whole(0, 1), most = whole(least, 1);
  for (auto& byte : planes) byte = uint8_t(extreme ? (whole(least, most) ? 255 : 0) : whole(0, 255));
  Weights weights = decode_weights(planes.data(), bits, half, outputs, inputs, parts, in);
  if (!extreme && whole(0, 2) == 0) pack_weights(weights, bits, half);
  return weights;
}

// Shapes and forms of one case; the rest is drawn.
struct Form {
  int tokens, width, bits;
  bool token_steps, extreme;
};

Linear random_linear(Finish finish, int outputs, int inputs, int parts, const Form& form, bool half, int weight_bits) {
  Linear op;
  op.finish = finish;
  op.in = {form.bits, whole(0, 1) == 1};
  op.out = {form.bits, finish == Finish::codes};
  op.tokens = form.tokens;
  op.token = whole(0, form.tokens - 1);
  op.weights = random_weights(outputs, inputs, parts, weight_bits, half, op.in, form.extreme);
  const int64_t lanes = tiles_of(form.tokens) * LANES, channels = int64_t(op.weights.panels) * PANEL;
  const float spread = std::sqrt(float(inputs)) * op.in.top() * op.weights.largest * (op.weights.wide ? 2 : 1) * .3f;
  op.scale = reals(parts * channels, .5f / spread * op.out.top(), 1.f / spread * op.out.top());
  op.bias = reals(channels, -1.f, 1.f);
  op.shift = reals(channels, -.3f, .3f);
  if (form.extreme) op.scale[0] = 1e9f, op.scale[1] = -1e9f;  // beyond the integers
  if (form.token_steps && finish != Finish::head) {
    op.in_step = reals(lanes, .5f, 2.f);
    if (outputs % 8 == 0) op.heads = 2;
    op.out_reciprocal = reals(op.heads * lanes, .5f, 2.f);
  }
  if (finish == Finish::threshold_codes) {
    const int count = op.out.top(), falling = form.token_steps ? 2 : 0;
    std::vector<int16_t> rising(channels * count), fall(channels * falling);
    const int reach = form.extreme ? Thresholds::REACH : std::min(int(3 * spread), Thresholds::REACH);
    const bool even = form.width >= 192 || whole(0, 1) == 1;  // nearly, as a GELU's are: the form of a table holds them
    for (int64_t c = 0; c < channels; c++) {
      for (int j = 0; j < count; j++)
        rising[c * count + j] = int16_t(even ? reach * (j + 1) / (count + 1) + whole(0, reach / 8 / count) : whole(-reach / 3, reach));
      if (whole(0, 3) == 0) rising[c * count] = Thresholds::ALWAYS, rising[c * count + count - 1] = Thresholds::NEVER;
      std::sort(rising.begin() + c * count, rising.begin() + (c + 1) * count);
      for (int j = 0; j < falling; j++) fall[c * falling + j] = int16_t(std::max(rising[c * count] - 1 - whole(0, 50), Thresholds::ALWAYS));
      std::sort(fall.begin() + c * falling, fall.begin() + (c + 1) * falling);
    }
    op.thresholds = make_thresholds(rising.data(), count, fall.data(), falling, int(channels),
                                    inputs * op.weights.largest * op.in.top());
  }
  return op;
}

LayerNorm random_layer_norm(const Form& form) {
  LayerNorm op;
  op.width = form.width, op.tokens = form.tokens, op.epsilon = 1e-6f, op.out = {form.bits, true};
  op.gamma = reals(form.width, -3.f, 3.f);
  op.beta = reals(form.width, -1.f, 1.f);
  if (form.token_steps) op.reciprocal = reals(tiles_of(form.tokens) * LANES, .5f, 2.f);
  return op;
}

Attention random_attention(const Form& form, int heads, int rows, bool shared, bool table) {
  Attention op;
  op.heads = heads, op.tokens = form.tokens, op.rows = rows, op.shared = shared, op.p_bits = form.bits;
  op.value_width = form.width / heads, op.width = shared ? form.width : op.value_width;
  op.q = {form.bits, whole(0, 1) == 1}, op.k = op.v = op.out = op.other = {form.bits, true};
  const int64_t lanes = tiles_of(form.tokens) * LANES, row_lanes = tiles_of(rows) * LANES;
  op.scale_varies = form.token_steps;
  const float least = 40.f / 1023;
  op.scale = form.token_steps ? reals(heads * lanes, .001f, .01f) : reals(1, least, 1.5f * least);
  op.context_scale = reals(form.width, .001f, .1f);
  op.context_bias = reals(form.width, -1.f, 1.f);
  op.p_reciprocal = reals(row_lanes, op.p_top() * .9f, op.p_top() * 1.2f);
  if (form.token_steps) {
    op.query_step = reals(row_lanes, .5f, 2.f);
    op.p_step = reals(row_lanes, .5f, 2.f);
    op.out_reciprocal = reals(row_lanes, .5f, 2.f);
    op.row_sum = reals(form.width, -.1f, .1f);
    op.key_shift = reals(op.width, -.01f, .01f);
    op.key_shift_step = reals(heads * lanes, .5f, 2.f);
    op.key_bias = reals(heads * form.width, -.01f, .01f);
    op.other_width = form.width;
    op.key_bias_step = reals(lanes, .5f, 2.f);
  } else if (table) {
    op.exp_table = Aligned<float>(form.width % 3 ? 80 : 64);
    for (int i = 0; i < 32; i++) {
      op.exp_table[i] = std::exp2(-32.f * i * op.scale[0]);
      op.exp_table[32 + i] = std::exp2(-i * op.scale[0]);
      if (op.exp_table.size() > 64 && i < 16) op.exp_table[64 + i] = std::exp2(-1024.f * i * op.scale[0]);
    }
    if (whole(0, 1)) op.key_shift = reals(op.width, -.001f, .001f);
  }
  return op;
}

Patches random_patches(int channels, int size, int patch, int first, int parts, int bits, bool before) {
  Patches op;
  op.channels = channels, op.size = size, op.patch = patch, op.first = first, op.parts = parts, op.out = {bits, true};
  op.tokens = first + (size / patch) * (size / patch);
  op.reciprocal = reals(channels, 10.f, 60.f);
  if (before) op.before = reals(size * size, -.1f, .1f);
  return op;
}

using Bytes = std::vector<uint8_t>;

// A case: what it is called, its run by an instruction set, and the memory that the run writes.
struct Case {
  std::string name;
  std::function<void(const Kernels&)> run;
  std::vector<std::pair<uint8_t*, size_t>> written;
  bool packed = false;        // weights, which only those take that multiply panel by panel
  int batch = 0, tokens = 0;  // of the first memory where it lies in tiles: lanes behind the last token hold anything

  Bytes compute(const Kernels& kernels) const {
    Bytes all;
    for (auto [memory, size] : written) std::fill_n(memory, size, uint8_t(77));
    run(kernels);
    for (auto [memory, size] : written) all.insert(all.end(), memory, memory + size);
    if (!tokens || tokens % LANES == 0) return all;
    const size_t image = written[0].second / batch, tile = image / tiles_of(tokens);
    for (int i = 1; i <= batch; i++)
      for (size_t line = i * image - tile; line < i * image; line += LINE) std::memset(&all[line + 4 * (tokens % LANES)], 0, LINE - 4 * (tokens % LANES));
    return all;
  }
};

template <class T>
using Shared = std::shared_ptr<Aligned<T>>;
template <class T>
Shared<T> shared(Aligned<T> values) {
  return std::make_shared<Aligned<T>>(std::move(values));
}
template <class T>
std::pair<uint8_t*, size_t> memory_of(const Shared<T>& values) {
  return {reinterpret_cast<uint8_t*>(values->data()), values->size() * sizeof(T)};
}

template <class Task>
void run_units(const Kernels& kernels, size_t units, Task task) {
  for (size_t unit = 0; unit < units; unit++) {
    if (kernels.begin_task) kernels.begin_task();
    task(unit);
  }
}

Case linear_case(std::string name, std::shared_ptr<Linear> op, const Form& form, int batch) {
  const int inputs = op->weights.parts * int(round_up(op->weights.inputs, BLOCK));
  const auto x = shared(random_codes(batch, form.tokens, inputs, op->in, form.extreme));
  const int64_t tiles = tiles_of(form.tokens), channels = int64_t(op->weights.panels) * PANEL;
  const bool is_head = op->finish == Finish::head, is_sum = is_head || op->finish == Finish::residual;
  const auto add = shared(reals(is_head ? batch * op->weights.outputs : batch * tiles * channels * LANES, -3.f, 3.f));
  const auto codes = shared(Aligned<uint8_t>(is_sum ? 0 : batch * tiles * rows_of(op->weights.outputs) * LINE));
  const auto sum = shared(Aligned<float>(is_sum ? add->size() : 0));
  const auto run = [=](const Kernels& kernels) {
    const LinearRun run{batch, x->data(), x->size() / batch, codes->data(), add->data(), add->size() / batch, sum->data()};
    run_units(kernels, linear_units(kernels, *op, batch), [&](size_t unit) { kernels.linear(*op, run, unit); });
  };
  return {std::move(name), run, {is_sum ? memory_of(sum) : memory_of(codes)}, !op->weights.packed.empty(), batch, is_head ? 0 : form.tokens};
}

Case layer_norm_case(std::string name, std::shared_ptr<LayerNorm> op, int batch) {
  const int64_t tiles = tiles_of(op->tokens);
  const auto x = shared(reals(batch * tiles * round_up(op->width, 16) * LANES, -5.f, 7.f));
  (*x)[2] = std::nanf(""), (*x)[3] = INFINITY, (*x)[4] = -INFINITY, (*x)[5] = 3e38f;
  const auto codes = shared(Aligned<uint8_t>(batch * tiles * rows_of(op->width) * LINE));
  const auto run = [=](const Kernels& kernels) {
    const LayerNormRun run{batch, x->data(), x->size() / batch, codes->data()};
    run_units(kernels, layer_norm_units(*op, batch), [&](size_t unit) { kernels.layer_norm(*op, run, unit); });
  };
  return {std::move(name), run, {memory_of(codes)}};
}

// proof: the codes p are given, and given out
Case attention_case(std::string name, std::shared_ptr<Attention> op, int batch, bool proof, bool extreme) {
  const int width = op->heads * op->value_width, inner = op->heads * op->width;
  const auto draw = [&](int channels) { return shared(random_codes(batch, op->tokens, channels, op->q, extreme)); };
  const auto q = draw(op->shared ? op->width : inner), k = draw(inner), v = draw(width), other = draw(width);
  const size_t matrix = proof ? size_t(batch) * op->heads * op->rows * op->tokens : 0;
  const auto forced = shared(Aligned<uint8_t>(matrix)), p = shared(Aligned<uint8_t>(matrix));
  for (size_t i = 0; i < matrix; i++) (*forced)[i] = uint8_t(whole(0, op->p_top()));
  const auto out = shared(Aligned<uint8_t>(batch * tiles_of(op->rows) * rows_of(width) * LINE));
  const auto scratch = shared(Aligned<char>(attention_scratch(*op, batch)));
  std::fill_n(scratch->data(), scratch->size(), char(77));  // memory of the runtime: anything
  const auto run = [=](const Kernels& kernels) {
    AttentionRun run{};
    run.batch = batch, run.q = q->data(), run.k = k->data(), run.v = v->data(), run.other = other->data();
    run.q_image = q->size() / batch, run.k_image = k->size() / batch, run.v_image = v->size() / batch, run.other_image = other->size() / batch;
    run.out = out->data(), run.probabilities = p->data(), run.forced = forced->data(), run.scratch = scratch->data();
    run_units(kernels, attention_keys_units(*op, batch), [&](size_t unit) { kernels.attention_keys(*op, run, unit); });
    run_units(kernels, attention_units(*op, batch), [&](size_t unit) { kernels.attention(*op, run, unit); });
  };
  return {std::move(name), run, {memory_of(out), memory_of(p)}, false, batch, op->rows};
}

Case patches_case(std::string name, std::shared_ptr<Patches> op, int batch) {
  const auto image = shared(reals(batch * op->channels * op->size * op->size, -3.f, 3.f));
  (*image)[0] = std::nanf(""), (*image)[1] = INFINITY, (*image)[2] = -INFINITY;
  const int64_t tile = op->parts * rows_of(int64_t(op->channels / op->parts) * op->patch * op->patch) * LINE;
  const auto codes = shared(Aligned<uint8_t>(batch * tiles_of(op->tokens) * tile));
  const auto run = [=](const Kernels& kernels) {
    const PatchesRun run{batch, image->data(), codes->data()};
    run_units(kernels, patches_units(*op, batch), [&](size_t unit) { kernels.patches(*op, run, unit); });
  };
  return {std::move(name), run, {memory_of(codes)}};
}

const char* name_of(Finish finish) {
  const char* names[] = {"codes", "gelu", "thresholds", "residual", "head"};
  return names[int(finish)];
}

std::vector<Case> random_cases() {
  std::vector<Case> cases;
  for (int tokens : {1, 5, 16, 17, 33, 50, 64, 198, 209, 257})
    for (int bits : {2, 3, 4, 5, 6, 8})
      for (bool extreme : {false, true}) {
        const int widths[] = {12, 48, 64, 96, 192}, width = widths[whole(0, 4)];
        const Form form{tokens, width, bits, whole(0, 1) == 1, extreme};
        const std::string what = std::to_string(tokens) + " tokens, width " + std::to_string(width) + ", " + std::to_string(bits) + " bits" +
                                 (form.token_steps ? ", token steps" : "") + (extreme ? ", extreme" : "");
        const int batch = tokens < 64 ? whole(1, 3) : 1;
        for (Finish finish : {Finish::codes, Finish::gelu_codes, Finish::threshold_codes, Finish::residual, Finish::head}) {
          if (finish == Finish::threshold_codes && bits > 4) continue;
          const int outputs = std::vector<int>{4, 16, 40, 72, 192}[whole(0, 4)], parts = finish == Finish::residual ? whole(1, 3) : 1;
          auto op = std::make_shared<Linear>(random_linear(finish, outputs, width, parts, form, whole(0, 1) == 1, bits));
          cases.push_back(linear_case(std::string(name_of(finish)) + ": " + what + ", outputs " + std::to_string(outputs), op, form, batch));
        }
        cases.push_back(layer_norm_case("layer norm: " + what, std::make_shared<LayerNorm>(random_layer_norm(form)), batch));
        const int heads = width % 3 ? 2 : 3, head_width = width / heads;
        if (head_width % 4 == 0) {
          const bool shared = whole(0, 1) == 1, proof = whole(0, 1) == 1;
          auto op = std::make_shared<Attention>(random_attention(form, heads, whole(0, 1) ? tokens : 1, shared, whole(0, 1) == 1));
          cases.push_back(attention_case("attention: " + what + (shared ? ", shared" : "") + (proof ? ", forced" : ""), op, batch, proof, extreme));
        }
      }
  for (int patch : {2, 3, 4, 8, 16})
    for (int channels : {1, 3})
      cases.push_back(patches_case("patches of " + std::to_string(patch),
                                   std::make_shared<Patches>(random_patches(channels, patch * whole(2, 5), patch, whole(0, 2),
                                                                            whole(0, 1) ? channels : 1, whole(2, 8), whole(0, 1) == 1)),
                                   2));
  return cases;
}

std::vector<Case> deit_cases() {
  std::vector<Case> cases;
  for (int width : {192, 384}) {
    const std::string size = width == 192 ? "T " : "S ";
    const int heads = width / 64;
    for (bool token : {false, true}) {
      const Form form{198, width, 4, token, false};
      const std::string steps = token ? ", token steps" : "";
      auto add = [&](const char* what, Finish finish, int outputs, int inputs) {
        cases.push_back(linear_case(size + what + steps, std::make_shared<Linear>(random_linear(finish, outputs, inputs, 1, form, true, 4)), form, 1));
      };
      cases.push_back(layer_norm_case(size + "layer norm" + steps, std::make_shared<LayerNorm>(random_layer_norm(form)), 1));
      add("q", Finish::codes, width, width);
      add("z", Finish::codes, width * heads, width);
      cases.push_back(attention_case(size + "attention apart" + steps, std::make_shared<Attention>(random_attention(form, heads, 198, false, true)), 1, false, false));
      cases.push_back(attention_case(size + "attention qkr" + steps, std::make_shared<Attention>(random_attention(form, heads, 198, true, true)), 1, false, false));
      add("proj", Finish::residual, width, width);
      add("fc1", token ? Finish::gelu_codes : Finish::threshold_codes, 4 * width, width);
      add("fc2", Finish::residual, width, 4 * width);
    }
    const Form form{198, 768, 8, false, false};
    cases.push_back(linear_case(size + "patch embedding", std::make_shared<Linear>(random_linear(Finish::residual, width, 768, 1, form, false, 8)), form, 1));
    cases.push_back(linear_case(size + "head", std::make_shared<Linear>(random_linear(Finish::head, 1000, width, 1, form, false, 8)), form, 1));
  }
  cases.push_back(patches_case("patches of 16 of 224", std::make_shared<Patches>(random_patches(3, 224, 16, 2, 1, 8, false)), 1));
  return cases;
}

// AMX where only its tile instructions are missing, and can be trapped.
const Kernels* find_trapped(const char* name) {
#ifdef OFQ_HAVE_AMX
  if (!std::strcmp(name, "amx") && find_kernels("avx512vnni") && trapped::trap_tiles()) return &kernels_amx;
#endif
  (void)name;
  return nullptr;
}

int compare(const std::vector<Case>& cases) {
  int wrong = 0, compared = 0;
  const Kernels* plain = find_kernels("plain");
  for (const Choice& choice : choices()) {
    const Kernels* kernels = choice.available ? find_kernels(choice.name) : find_trapped(choice.name);
    std::printf("%-14s %s%s\n", choice.name, kernels ? "compared" : choice.why,
                kernels && !choice.available ? ", each tile instruction emulated where it traps" : "");
    if (!kernels || kernels == plain) continue;
    for (const Case& one : cases) {
      if (one.packed && kernels->panels > 1) continue;
      const Bytes expected = one.compute(*plain), got = one.compute(*kernels);
      compared++;
      if (expected == got) continue;
      size_t different = 0, first = expected.size();
      for (size_t i = 0; i < expected.size(); i++)
        if (expected[i] != got[i]) different++, first = std::min(first, i);
      std::printf("%s: %s: %zu of %zu bytes differ, first at %zu\n", choice.name, one.name.c_str(), different, expected.size(), first);
      wrong++;
    }
  }
  std::printf("%d comparisons, %d differ\n", compared, wrong);
  return wrong ? 1 : 0;
}

void time_them(const std::vector<Case>& cases) {
  for (const Choice& choice : choices()) {
    const Kernels* kernels = choice.available ? find_kernels(choice.name) : nullptr;
    if (!kernels || std::strstr(choice.name, "plain") || std::strstr(choice.name, "emulated")) continue;
    for (const Case& one : cases) {
      if (one.packed && kernels->panels > 1) continue;
      double least = 1e9;
      for (int i = 0; i < 100; i++) {
        const auto begin = std::chrono::steady_clock::now();
        one.run(*kernels);
        least = std::min(least, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
      }
      std::printf("%-12s %-36s %8.1f us\n", choice.name, one.name.c_str(), least * 1e6);
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  std::vector<Case> cases = random_cases(), deit = deit_cases();
  cases.insert(cases.end(), deit.begin(), deit.end());
  const int status = compare(cases);
  if (count > 1 && !std::strcmp(arguments[1], "time")) time_them(deit);
  return status;
}
