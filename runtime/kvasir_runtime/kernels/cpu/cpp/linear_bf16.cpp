// bfloat16 weights. Letters: R rows, I input features (an even number), O output features.
//
// A panel holds PANEL outputs: for each two inputs the two weights of each output lie together, 64 bytes, as the
// dot-product instruction reads them. One layout serves both ends: with few rows a step is as fast as memory delivers
// the panels, with many as fast as the cores multiply. Each output is summed over the inputs in their order, in one
// accumulator: a row's result does not depend on how many rows there are, nor on threads.

#include "vectors.h"

#ifdef __AVX512BF16__

#include <array>
#include <utility>

namespace {

constexpr int64_t PANEL = 16;
constexpr int64_t LINE = 64;         // bytes of a panel for each pair of inputs
constexpr int64_t FEW = 16;          // rows that are multiplied by one panel at a time
constexpr int64_t TALL = 12;         // rows that are multiplied by two panels at a time: 24 of 32 registers are sums
constexpr int64_t CHUNK = 480 << 10; // bytes of rows that stay in the second-level cache while panels pass by
constexpr int64_t MOST_GROUP = 32;   // panels of one piece of work
constexpr int64_t FAR = 512 * LINE;  // how far ahead of its use a panel is fetched from memory
constexpr int64_t NEAR = 16 * LINE;  // and from the second-level cache

// A call's arguments. A gated one has twice as many panels as its outputs fill: each of a gate, then of what it gates.
struct Bf16Call {
    const bf16 *x;         // [R, I]
    const char *panels;    // [ceil(O / PANEL), I / 2, PANEL, 2]
    const float *bias;     // [O] or null
    bf16 *out;             // [R, O]
    int64_t rows, outputs, inputs;

    int64_t panel_count() const { return (outputs + PANEL - 1) / PANEL; }
};

// Bias, rounding and storing of R rows by one panel.
template <int R>
void finish(const Bf16Call &d, int64_t row, int64_t panel, const __m512 *sums, int step) {
    const int64_t at = panel * PANEL, count = std::min(PANEL, d.outputs - at);
    const __mmask16 kept = __mmask16((1u << count) - 1);
    const __m512 bias = d.bias ? _mm512_maskz_loadu_ps(kept, d.bias + at) : _mm512_setzero_ps();
    for (int r = 0; r < R; r++)
        _mm256_mask_storeu_epi16(d.out + (row + r) * d.outputs + at, kept, (__m256i)_mm512_cvtneps_pbh(sums[r * step] + bias));
}

inline v16 rounded(__m512 sums) {
    const __m256bh narrow = _mm512_cvtneps_pbh(sums);
    return load16(reinterpret_cast<const bf16 *>(&narrow));
}

// SiLU of R rows by a gate's panel times those by the next one, each rounded before as a result of its own would be.
template <int R>
void finish_gated(const Bf16Call &d, int64_t row, int64_t panel, const __m512 *gates, const __m512 *others, int step) {
    for (int r = 0; r < R; r++) {
        const v16 gate = rounded(gates[r * step]), e = exp16(gate < 0 ? gate : -gate);
        // sigmoid(gate) from exp(-|gate|), which cannot overflow.
        store16(d.out + (row + r) * d.outputs + panel / 2 * PANEL,
                gate * (gate >= 0 ? all(1.0f) : e) / (1.0f + e) * rounded(others[r * step]));
    }
}

// Sums of all R rows, transposed to x[I / 2][R], by one panel.
template <int R>
inline __attribute__((always_inline)) void sum_few(const Bf16Call &d, const int32_t *x, int64_t panel, __m512 *totals) {
    const int64_t pairs = d.inputs / 2;
    const char *weights = d.panels + panel * pairs * LINE;
    __m512 sums[R] = {};
    for (int64_t k = 0; k < pairs; k++) {
        const __m512bh pair = (__m512bh)_mm512_loadu_si512(weights + k * LINE);
        _mm_prefetch(weights + k * LINE + FAR, _MM_HINT_T1);
        _mm_prefetch(weights + k * LINE + NEAR, _MM_HINT_T0);
        for (int r = 0; r < R; r++) sums[r] = _mm512_dpbf16_ps(sums[r], pair, (__m512bh)_mm512_set1_epi32(x[k * R + r]));
    }
    std::copy_n(sums, R, totals);
}

// All rows by one panel, or by a gate's and the one after it.
template <int R, bool GATED>
void multiply_few(const Bf16Call &d, const int32_t *x, int64_t panel) {
    __m512 sums[2][R];
    sum_few<R>(d, x, panel, sums[0]);
    if (!GATED) return finish<R>(d, 0, panel, sums[0], 1);
    sum_few<R>(d, x, panel + 1, sums[1]);
    finish_gated<R>(d, 0, panel, sums[0], sums[1], 1);
}

// R rows from `row` on by N panels from `panel` on; meanwhile `lines` are fetched from `next` on.
// Three rows share a pointer: an address has room for twice a stride.
template <int R, int N, bool GATED>
void multiply_many(const Bf16Call &d, int64_t row, int64_t panel, const char *next, int64_t lines) {
    const int64_t stride = d.inputs * sizeof(bf16), pairs = d.inputs / 2, size = pairs * LINE;
    const char *weights = d.panels + panel * size, *x[(R + 2) / 3];
    for (int i = 0; i < (R + 2) / 3; i++) x[i] = (const char *)d.x + (row + 3 * i) * stride;
    __m512 sums[R][N] = {};
    for (int64_t k = 0; k < pairs; k++) {
        __m512bh pair[N];
        for (int n = 0; n < N; n++) {
            pair[n] = (__m512bh)_mm512_loadu_si512(weights + n * size + k * LINE);
            _mm_prefetch(weights + n * size + k * LINE + NEAR, _MM_HINT_T0);
        }
        if (k < lines) _mm_prefetch(next + k * LINE, _MM_HINT_T1);
        for (int r = 0; r < R; r++) {
            int32_t two;
            std::memcpy(&two, x[r / 3] + r % 3 * stride + k * 4, 4);
            for (int n = 0; n < N; n++) sums[r][n] = _mm512_dpbf16_ps(sums[r][n], (__m512bh)_mm512_set1_epi32(two), pair[n]);
        }
    }
    if (GATED) return finish_gated<R>(d, row, panel, sums[0], sums[0] + 1, N);
    for (int n = 0; n < N; n++) finish<R>(d, row, panel + n, sums[0] + n, N);
}

// By number of rows less one.
template <bool GATED, int... R>
constexpr auto few_rows(std::integer_sequence<int, R...>) {
    return std::array{multiply_few<R + 1, GATED>...};
}

template <int N, bool GATED, int... R>
constexpr auto many_rows(std::integer_sequence<int, R...>) {
    return std::array{multiply_many<R + 1, N, GATED>...};
}

template <bool GATED>
constexpr auto FEW_ROWS = few_rows<GATED>(std::make_integer_sequence<int, FEW>{});
template <bool GATED>
constexpr auto TWO_PANELS = many_rows<2, GATED>(std::make_integer_sequence<int, TALL>{});
constexpr auto ONE_PANEL = many_rows<1, false>(std::make_integer_sequence<int, TALL>{});

// Sixteen vectors become their own columns, in four rounds of exchanging: neighbours, pairs, fours, eights.
inline __attribute__((always_inline)) void exchange(__m512i *v) {
    __m512i w[16];
    for (int i = 0; i < 16; i += 2) {
        w[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        w[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            v[i + 2 * j] = _mm512_unpacklo_epi64(w[i + j], w[i + j + 2]);
            v[i + 2 * j + 1] = _mm512_unpackhi_epi64(w[i + j], w[i + j + 2]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            w[i + j] = _mm512_shuffle_i32x4(v[i + j], v[i + j + 4], 0x88);
            w[i + j + 4] = _mm512_shuffle_i32x4(v[i + j], v[i + j + 4], 0xdd);
        }
    for (int i = 0; i < 8; i++) {
        v[i] = _mm512_shuffle_i32x4(w[i], w[i + 8], 0x88);
        v[i + 8] = _mm512_shuffle_i32x4(w[i], w[i + 8], 0xdd);
    }
}

// Pairs of inputs of all rows (FEW at most) side by side: [I / 2, R], and room for FEW more. Rows that lie a power of
// two apart would share few places of the first-level cache.
void transpose(const Bf16Call &d, int32_t *out) {
    const int64_t pairs = d.inputs / 2;
    const int32_t *x = reinterpret_cast<const int32_t *>(d.x);
    for (int64_t begin = 0; begin < pairs; begin += 16) {
        const int64_t count = std::min<int64_t>(16, pairs - begin);
        __m512i v[16] = {};
        for (int64_t r = 0; r < d.rows; r++) v[r] = _mm512_maskz_loadu_epi32(__mmask16((1u << count) - 1), x + r * pairs + begin);
        exchange(v);
        for (int64_t k = 0; k < count; k++) _mm512_storeu_si512(out + (begin + k) * d.rows, v[k]);
    }
}

template <bool GATED>
void linear_few(const Bf16Call &d, int threads) {
    static thread_local std::vector<int32_t> transposed;  // kept from call to call
    const int32_t *x = reinterpret_cast<const int32_t *>(d.x);
    if (d.rows > 1) {
        transposed.resize(d.inputs / 2 * d.rows + FEW);
        transpose(d, transposed.data());
        x = transposed.data();
    }
    const int64_t panels = d.panel_count();
#pragma omp parallel for num_threads(threads)
    for (int64_t panel = 0; panel < panels; panel++) FEW_ROWS<GATED>[d.rows - 1](d, x, GATED ? 2 * panel : panel);
}

// The whole split into as few equal parts as keep each at `most`.
int64_t equal_part(int64_t whole, int64_t most) {
    const int64_t parts = (whole + most - 1) / most;
    return (whole + parts - 1) / parts;
}

template <bool GATED>
void linear_many(const Bf16Call &d, int threads) {
    const int64_t panels = (GATED ? 2 : 1) * d.panel_count(), pairs = d.inputs / 2;
    const int64_t rows = equal_part(d.rows, std::max<int64_t>(CHUNK / (d.inputs * sizeof(bf16)), 4 * TALL));
    const int64_t chunks = (d.rows + rows - 1) / rows;
    // Pieces small enough that all threads end at about the same time; an even number of panels each.
    const int64_t group = std::clamp<int64_t>(panels * chunks / (threads * 8) / 2 * 2, 2, MOST_GROUP);
    const int64_t groups = (panels + group - 1) / group;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t piece = 0; piece < groups * chunks; piece++) {
        const int64_t top = piece / groups * rows, bottom = std::min(d.rows, top + rows);
        const int64_t tall = equal_part(bottom - top, TALL), passes = (bottom - top + tall - 1) / tall;
        const int64_t begin = piece % groups * group, end = std::min(panels, begin + group);
        // While the rows pass by two panels, the next two are fetched, each pass a share of them.
        const int64_t share = (2 * pairs + passes - 1) / passes;
        for (int64_t panel = begin; panel < end; panel += 2) {
            const char *next = d.panels + (panel + 2) * pairs * LINE;
            for (int64_t row = top; row < bottom; row += tall, next += share * LINE)
                (panel + 1 == end ? ONE_PANEL : TWO_PANELS<GATED>)[std::min(tall, bottom - row) - 1](d, row, panel, next, share);
        }
    }
}

}  // namespace

extern "C" {

// Bytes of the panels of an [outputs, inputs] weight; 0: not for this number of inputs, or not on this CPU.
int64_t kvasir_bf16_bytes(int64_t outputs, int64_t inputs) {
    return inputs % 2 ? 0 : (outputs + PANEL - 1) / PANEL * PANEL * inputs * sizeof(bf16);
}

// `panels` is zeroed memory of kvasir_bf16_bytes.
void kvasir_pack_bf16(const bf16 *weight, bf16 *panels, int64_t outputs, int64_t inputs, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t o = 0; o < outputs; o++) {
        bf16 *column = panels + o / PANEL * PANEL * inputs + o % PANEL * 2;
        for (int64_t i = 0; i < inputs; i += 2) std::memcpy(column + i * PANEL, weight + o * inputs + i, 4);
    }
}

void kvasir_linear_bf16(const bf16 *x, const char *panels, const float *bias, bf16 *out, int64_t rows, int64_t outputs,
                        int64_t inputs, int threads) {
    const Bf16Call call{x, panels, bias, out, rows, outputs, inputs};
    if (rows > FEW) linear_many<false>(call, threads);
    else if (rows > 0) linear_few<false>(call, threads);
}

// `outputs`, a multiple of PANEL, gated: panels of gate and gated take turns.
void kvasir_silu_gated_bf16(const bf16 *x, const char *panels, bf16 *out, int64_t rows, int64_t outputs, int64_t inputs, int threads) {
    const Bf16Call call{x, panels, nullptr, out, rows, outputs, inputs};
    if (rows > FEW) linear_many<true>(call, threads);
    else if (rows > 0) linear_few<true>(call, threads);
}
}

#else

extern "C" {

int64_t kvasir_bf16_bytes(int64_t, int64_t) { return 0; }

void kvasir_pack_bf16(const bf16 *, bf16 *, int64_t, int64_t, int) {}

void kvasir_linear_bf16(const bf16 *, const char *, const float *, bf16 *, int64_t, int64_t, int64_t, int) {}

void kvasir_silu_gated_bf16(const bf16 *, const char *, bf16 *, int64_t, int64_t, int64_t, int) {}
}

#endif
