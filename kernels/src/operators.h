// The operators as plain data: what the exporter decided, and how an instruction set computes them. docs/kernels.md defines them.
//
// `library.cpp` reads nodes, checks everything and fills these structures; `shared.inc` computes, once per instruction set.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

// Files with other compiler flags must not leave functions behind that the linker may take for all: what they share is inlined.
#define OFQ_SHARED inline __attribute__((always_inline))

namespace ofq {

constexpr int LANES = 16;       // tokens of a tile
constexpr int LINE = 64;        // bytes of 4 channels x 16 tokens
constexpr int PANEL = 16;       // output channels of a block of weights
constexpr int BLOCK = 64;       // inputs of a block of weights
constexpr int TILE = PANEL * LANES;  // sums of a panel and a tile
constexpr int CHUNK = 16;       // tiles of a task of a linear operator, at most
constexpr int MAX_IMAGE = 4096; // pixels of a side

OFQ_SHARED constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
OFQ_SHARED constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
OFQ_SHARED constexpr int64_t tiles_of(int64_t tokens) { return ceil_div(tokens, LANES); }
OFQ_SHARED constexpr int64_t rows_of(int64_t width) { return 16 * ceil_div(width, BLOCK); }  // lines of a tile of codes

// Memory on cache lines, in huge pages where the system has them; zero when made.
void* aligned_new(size_t bytes);
void aligned_delete(void* memory) noexcept;
template <class T>
class Aligned {
 public:
  Aligned() = default;
  explicit Aligned(size_t count) : count_(count), data_(count ? static_cast<T*>(aligned_new(count * sizeof(T))) : nullptr) {}
  Aligned(Aligned&& other) noexcept : count_(other.count_), data_(other.data_) { other.count_ = 0, other.data_ = nullptr; }
  Aligned& operator=(Aligned&& other) noexcept {
    std::swap(count_, other.count_), std::swap(data_, other.data_);
    return *this;
  }
  ~Aligned() { aligned_delete(data_); }
  OFQ_SHARED T* data() { return data_; }
  OFQ_SHARED const T* data() const { return data_; }  // null where it is empty
  OFQ_SHARED size_t size() const { return count_; }
  OFQ_SHARED bool empty() const { return count_ == 0; }
  OFQ_SHARED T& operator[](size_t i) { return data_[i]; }
  OFQ_SHARED const T& operator[](size_t i) const { return data_[i]; }

 private:
  size_t count_ = 0;
  T* data_ = nullptr;
};

struct Grid {
  int bits = 8;
  bool is_signed = false;
  OFQ_SHARED int zero() const { return is_signed ? 1 << (bits - 1) : 0; }
  OFQ_SHARED int top() const { return (1 << bits) - 1; }  // the largest stored byte; the smallest is 0
};

// Weights as the product reads them. Padded channels and inputs are zero.
struct Weights {
  int outputs = 0, inputs = 0, parts = 1;  // inputs of one part
  int panels = 0, blocks = 0;              // blocks of one part
  bool wide = false;                       // integers 2 k + 1 of 8 bits: tiles hold k, sums are doubled and codes added
  int largest = 0;                         // of the magnitudes in `tiles`
  Aligned<int8_t> tiles;                   // [panels][parts][blocks][16][64], or empty where they are packed:
  Aligned<uint8_t> packed;                 // [panels][parts][blocks][512], bytes i and i + 512 of a block: unit * field - offset
  int unit = 1, offset = 0;
  Aligned<int32_t> start;                  // [parts][panels * 16]: -zero * sum of the integers
};

// planes: bit planes of code + 2^(bits-1), codes row-major [outputs, parts * inputs]; sizes were checked.
Weights decode_weights(const uint8_t* planes, int bits, bool half, int outputs, int inputs, int parts, Grid in);

// Keeps weights of up to 4 bits at 4 bits: half the memory, and half of what a network streams; a task widens its panel. Weights that
// have no such form stay as they are.
void pack_weights(Weights& weights, int bits, bool half);

// Codes as step functions of the accumulator, for all channels of a layer: counts of thresholds in 16 bits. -32768 counts always in
// `rising` and never in `falling`, 32767 never in `rising`; all others lie within +-REACH.
struct Thresholds {
  static constexpr int ALWAYS = -32768, NEVER = 32767, REACH = 32766;
  int rising = 0, falling = 0;   // per channel
  Aligned<int16_t> values;       // [panels * 16][rising + falling], rising first
  // Rising ones as y = (x + table[x >> 11 & 31]) >> 11, x = sat16(rint(fma(acc, scale, offset))); made only where it is exact.
  bool has_table = false;
  Aligned<float> scale, offset;  // [panels * 16]
  Aligned<int16_t> table;        // [panels * 16][32]
};

// Builds the table and proves it against the thresholds, at every accumulator of at most `reach` in magnitude.
Thresholds make_thresholds(const int16_t* rising, int count, const int16_t* falling, int falling_count, int channels, int32_t reach);

struct Patches {
  int channels, size, patch, first, tokens, parts;
  Grid out;
  Aligned<float> reciprocal;  // [channels]
  Aligned<float> before;      // [size * size], or empty
};
struct LayerNorm {
  int width, tokens;
  float epsilon;
  Grid out;
  Aligned<float> gamma, beta;  // [width]
  Aligned<float> reciprocal;   // [tiles * 16], padded with 1, or empty
};
enum class Finish { codes, gelu_codes, threshold_codes, residual, head };
struct Linear {
  Finish finish;
  Weights weights;
  Grid in, out;
  int tokens, heads = 1;
  int token = 0;                   // of Finish::head
  Aligned<float> scale;            // [parts][panels * 16], padded with 0
  Aligned<float> bias;             // [panels * 16], padded with 0
  Aligned<float> in_step;          // [tiles * 16], padded with 1, or empty
  Aligned<float> out_reciprocal;   // [heads][tiles * 16], padded with 1, or empty
  Aligned<float> shift;            // [panels * 16]: of Finish::gelu_codes
  Thresholds thresholds;           // of Finish::threshold_codes
};
struct Attention {
  int heads, tokens, rows, width, value_width;
  bool shared;  // all heads read the same queries
  Grid q, k, v, out, other;
  int p_bits;
  OFQ_SHARED int p_top() const { return (1 << p_bits) - 1; }
  Aligned<float> scale;           // [heads][tiles * 16] where it varies, else one
  bool scale_varies = false;
  Aligned<float> context_scale, context_bias, row_sum;  // [heads * value_width]; row_sum may be empty
  Aligned<float> p_reciprocal;    // [row tiles * 16]
  Aligned<float> exp_table;       // 64 or 80, or empty
  Aligned<float> query_step, p_step, out_reciprocal;    // [row tiles * 16], padded with 1, or empty
  Aligned<float> key_shift;       // [heads or 1][width], or empty
  int key_shift_heads = 1;
  Aligned<float> key_shift_step;  // [heads][tiles * 16], or empty
  Aligned<float> key_bias;        // [heads][other_width], or empty
  int other_width = 0;
  Aligned<float> key_bias_step;   // [tiles * 16], or empty
};

// What a task of attention works in: one for each thread, kept between runs.
struct Workspace {
  Aligned<uint8_t> room;     // [blocks of a query][16][64]
  Aligned<int32_t> scores;   // [tiles][16 keys][16 queries]
  Aligned<uint8_t> lines;    // [blocks of keys][16][64]: the codes p, four keys a line
  Aligned<int32_t> context;  // [panels][16 channels][16 queries]
  Aligned<float> factors;    // [tiles * 16]
};
int8_t* panel_room(int64_t bytes);  // for a panel of weights
Workspace& workspace(int64_t tiles, int64_t query_blocks, int64_t key_blocks, int64_t panels);

// Pointers of one run. `*_image`: from one image to the next, in elements (0: the same for all).
struct PatchesRun { int batch; const float* image; uint8_t* out; };
struct LayerNormRun { int batch; const float* x; size_t x_image; uint8_t* out; };
struct LinearRun {
  int batch;
  const uint8_t* x; size_t x_image;
  uint8_t* codes;                          // Finish::*codes
  const float* add; size_t add_image;      // Finish::residual, and head where it is not null
  float* sum;                              // Finish::residual: residual layout; head: [batch, outputs]
};
struct AttentionRun {
  int batch;
  const uint8_t *q, *k, *v, *other; size_t q_image, k_image, v_image, other_image;
  uint8_t* out;
  uint8_t* probabilities;                  // [batch, heads, rows, tokens], or null
  const uint8_t* forced;                   // the same shape, or null
  void* scratch;                           // attention_scratch bytes on a cache line
};

// One instruction set. A run is `units` independent tasks, 0 .. units - 1, in any order and on any threads; attention has two
// phases, the second of which begins when all tasks of the first have ended.
struct Kernels {
  const char* name;
  void (*begin_task)();  // what a thread has to do first (tile configuration), or null
  void (*patches)(const Patches&, const PatchesRun&, size_t unit);
  void (*layer_norm)(const LayerNorm&, const LayerNormRun&, size_t unit);
  void (*linear)(const Linear&, const LinearRun&, size_t unit);
  void (*attention_keys)(const Attention&, const AttentionRun&, size_t unit);
  void (*attention)(const Attention&, const AttentionRun&, size_t unit);
  int panels = 1;  // of a task of a linear operator
};

size_t patches_units(const Patches&, int batch);
size_t layer_norm_units(const LayerNorm&, int batch);
size_t linear_units(const Kernels&, const Linear&, int batch);
size_t attention_keys_units(const Attention&, int batch);
size_t attention_units(const Attention&, int batch);
size_t attention_scratch(const Attention&, int batch);

// Chooses once, by processor and OFQ_KERNELS; `why` tells of every instruction set whether it can run here.
struct Choice {
  const char* name;
  bool available;
  const char* why;
};
const Kernels& kernels();             // throws std::runtime_error for a forced one that is unknown or cannot run
const Kernels* find_kernels(const char* name);  // null where it cannot run
const std::vector<Choice>& choices(); // fastest first

}  // namespace ofq
