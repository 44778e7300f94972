// Attention, the small operations around it and int8 weights, for CPUs.
//
// Plain loops that the compiler vectorises; it is compiled once for each instruction set (see build.py). Numbers are
// read as float32 or bfloat16 and computed in float32. Threads come from the OpenMP pool that torch uses.
//
// Letters: T rows, D features, N decode rows, H query heads, K KV heads, G = H / K, C head dimension, B blocks,
// S tokens in a block. Every entry point is checked against its torch oracle by the tests.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>
#if defined(__AVX512BF16__) || defined(__AVX512VNNI__)
#include <immintrin.h>
#endif

namespace {

struct bf16 {
    uint16_t bits;
};

inline float load(float value) { return value; }

inline float load(bf16 value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, 4);
    return wide;
}

inline void store(float &target, float value) { target = value; }

inline void store(bf16 &target, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    // Round to nearest, ties to even. NaN stays NaN: its payload's high bits survive or are set.
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    target.bits = uint16_t(value == value ? rounded : 0x7fc0);
}

// exp(x) for x <= 0 with a relative error below 2e-7: 2^n times a polynomial on [-ln2/2, ln2/2] (Cody and Waite).
inline float exp_nonpositive(float x) {
    x = std::max(x, -87.0f);
    float n = std::nearbyintf(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t exponent = (int32_t(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &exponent, 4);
    return p * scale;
}

constexpr int CHUNK = 512;      // tokens whose attention is computed by one thread at a time
constexpr int TILE = 16;        // tokens computed together: one vector of scores
constexpr int MAX_GROUP = 32;   // query heads of a KV head
constexpr int MAX_VECTORS = 16; // of a head: head dimensions up to 256

// Sixteen floats; on narrower machines the compiler makes several registers of it.
typedef float v16 __attribute__((vector_size(64)));
typedef int32_t v16i __attribute__((vector_size(64)));
typedef uint32_t v16u __attribute__((vector_size(64)));
typedef uint16_t v16h __attribute__((vector_size(32)));

inline v16 load16(const float *x) {
    v16 v;
    std::memcpy(&v, x, sizeof v);
    return v;
}

inline v16 load16(const bf16 *x) {
    v16h narrow;
    std::memcpy(&narrow, x, sizeof narrow);
    return v16(__builtin_convertvector(narrow, v16u) << 16);
}

inline void store16(float *x, v16 v) { std::memcpy(x, &v, sizeof v); }

inline v16 all(float x) { return v16{} + x; }

// As exp_nonpositive, for sixteen numbers.
inline v16 exp16(v16 x) {
    x = x > -87.0f ? x : all(-87.0f);
    const v16i n = __builtin_convertvector(x * 1.44269504f - 0.5f, v16i);  // truncation: to nearest, for x <= 0
    const v16 f = __builtin_convertvector(n, v16);
    const v16 r = x - f * 0.693359375f + f * 2.12194440e-4f;
    v16 p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * v16((n + 127) << 23);
}

// sums[j] = the sum of vector j, by a tree of pairwise additions that transposes on its way.
inline v16 sum_each(const v16 *x) {
    v16 a[8], b[4], c[2];
    for (int i = 0; i < 8; i++)
        a[i] = __builtin_shufflevector(x[2 * i], x[2 * i + 1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
               __builtin_shufflevector(x[2 * i], x[2 * i + 1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    for (int i = 0; i < 4; i++)
        b[i] = __builtin_shufflevector(a[2 * i], a[2 * i + 1], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               __builtin_shufflevector(a[2 * i], a[2 * i + 1], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    for (int i = 0; i < 2; i++)
        c[i] = __builtin_shufflevector(b[2 * i], b[2 * i + 1], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               __builtin_shufflevector(b[2 * i], b[2 * i + 1], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    return __builtin_shufflevector(c[0], c[1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           __builtin_shufflevector(c[0], c[1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}

// The vector rotated by half its length, by a quarter and so on: four steps reduce it to one number.
inline v16 swap8(v16 x) { return __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7); }
inline v16 swap4(v16 x) { return __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11); }
inline v16 swap2(v16 x) { return __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13); }
inline v16 swap1(v16 x) { return __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14); }

inline v16 larger(v16 x, v16 y) { return x > y ? x : y; }

inline float highest_of(v16 x) {
    x = larger(x, swap8(x));
    x = larger(x, swap4(x));
    x = larger(x, swap2(x));
    return larger(x, swap1(x))[0];
}

inline float sum_of(v16 x) {
    x += swap8(x);
    x += swap4(x);
    x += swap2(x);
    return x[0] + x[1];
}

// One call of attention. A sequence has a row of `tables` and an entry of `lengths`; in decode it has one row of `q`,
// in prefill those from starts[i] to starts[i + 1], its last tokens.
struct Call {
    const void *q;               // [T, H, C]
    const void *kv;              // [2, B, K, S, C]
    const int32_t *tables;       // [sequences, table_width]
    const int32_t *lengths;      // [sequences]
    const int32_t *starts;       // [sequences + 1], null in decode
    void *out;                   // [T, H, C]
    int64_t sequences, heads, kv_heads, head_dim, blocks, block_size, table_width;
    float scale, softcap;        // softcap 0: none
    int64_t window;              // 0: none
};

// What one query has seen so far: the highest score, the sum of exponentials and the weighted sum of values.
struct State {
    float highest, total;
    v16 sums[MAX_VECTORS];
};

// Which tokens of a tile a query sees: those of number `from` up to, not including, `to`.
struct Seen {
    int from, to;
};

// Softmax weights of a tile's scores against the highest score so far; rescales the state when there is a new one.
inline v16 weigh(v16 s, Seen seen, int vectors, float softcap, State &state) {
    const v16 lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    if (softcap > 0)
        for (int t = 0; t < TILE; t++) s[t] = softcap * std::tanh(s[t] / softcap);
    const v16i shown = (lanes >= float(seen.from)) & (lanes < float(seen.to));
    s = shown ? s : all(-std::numeric_limits<float>::infinity());
    const float highest = highest_of(s);
    if (highest > state.highest) {
        const float shrink = exp_nonpositive(state.highest - highest);
        state.highest = highest;
        state.total *= shrink;
        for (int i = 0; i < vectors; i++) state.sums[i] *= shrink;
    }
    return shown ? exp16(s - state.highest) : v16{};
}

// `count` (at most TILE) consecutive tokens for Q queries. V vectors make a head; 0: told at run time.
template <typename T, int V_, int Q>
inline void attend_tile(const v16 *query, const T *k, const T *v, int count, const Seen *seen, int vectors,
                        float softcap, State *states) {
    const int V = V_ ? V_ : vectors;
    v16 score[Q][TILE];
    for (int t = 0; t < TILE; t++) {
        v16 dot[Q] = {};
        if (t < count)
            for (int i = 0; i < V; i++) {
                const v16 key = load16(k + (t * V + i) * 16);
                for (int g = 0; g < Q; g++) dot[g] += query[g * V + i] * key;
            }
        for (int g = 0; g < Q; g++) score[g][t] = dot[g];
    }
    float weights[Q][TILE];
    for (int g = 0; g < Q; g++) {
        const v16 weight = weigh(sum_each(score[g]), seen[g], V, softcap, states[g]);
        states[g].total += sum_of(weight);
        store16(weights[g], weight);
    }
    constexpr int STRIP = 4;  // vectors of a value whose sums stay in registers
    for (int first = 0; first < V; first += STRIP) {
        const int strip = V - first < STRIP ? V - first : STRIP;
        v16 sums[Q][STRIP];
        for (int g = 0; g < Q; g++)
            for (int i = 0; i < strip; i++) sums[g][i] = states[g].sums[first + i];
        for (int t = 0; t < count; t++)
            for (int i = 0; i < strip; i++) {
                const v16 value = load16(v + (t * V + first + i) * 16);
                for (int g = 0; g < Q; g++) sums[g][i] += weights[g][t] * value;
            }
        for (int g = 0; g < Q; g++)
            for (int i = 0; i < strip; i++) states[g].sums[first + i] = sums[g][i];
    }
}

#ifdef __AVX512BF16__

// As attend_tile, with products of bfloat16 pairs that accumulate in float32: half the instructions. Weights are
// rounded to bfloat16 too, and their sum is that of the rounded ones. The sums of a state stand in the order of
// `unpack` (see `in_order`). V is even.
template <int V_, int Q>
inline void attend_tile_bf16(const __m512bh *query, const bf16 *k, const bf16 *v, int count, const Seen *seen,
                             int vectors, float scale, float softcap, State *states) {
    const int P = (V_ ? V_ : vectors) / 2;  // vectors of 32
    v16 score[Q][TILE];
    for (int t = 0; t < TILE; t++) {
        __m512 dot[Q] = {};
        if (t < count)
            for (int i = 0; i < P; i++) {
                const __m512bh key = (__m512bh)_mm512_loadu_si512(k + (t * P + i) * 32);
                for (int g = 0; g < Q; g++) dot[g] = _mm512_dpbf16_ps(dot[g], query[g * P + i], key);
            }
        for (int g = 0; g < Q; g++) score[g][t] = dot[g];
    }
    int32_t pairs[Q][TILE / 2];
    for (int g = 0; g < Q; g++) {
        const v16 weight = weigh(sum_each(score[g]) * scale, seen[g], 2 * P, softcap, states[g]);
        const __m256bh narrow = _mm512_cvtneps_pbh(weight);
        std::memcpy(pairs[g], &narrow, sizeof narrow);
        states[g].total += sum_of(load16(reinterpret_cast<const bf16 *>(pairs[g])));
    }
    constexpr int STRIP = Q > 4 ? 1 : 2;  // so that the sums stay in registers
    for (int first = 0; first < P; first += STRIP) {
        const int strip = P - first < STRIP ? P - first : STRIP;
        __m512 low[Q][STRIP], high[Q][STRIP];
        for (int g = 0; g < Q; g++)
            for (int i = 0; i < strip; i++) {
                low[g][i] = states[g].sums[2 * (first + i)];
                high[g][i] = states[g].sums[2 * (first + i) + 1];
            }
        for (int t = 0; t < count; t += 2)
            for (int i = 0; i < strip; i++) {
                const bf16 *at = v + (t * P + first + i) * 32;
                const __m512i even = _mm512_loadu_si512(at);
                const __m512i odd = t + 1 < count ? _mm512_loadu_si512(at + P * 32) : _mm512_setzero_si512();
                const __m512bh left = (__m512bh)_mm512_unpacklo_epi16(even, odd);
                const __m512bh right = (__m512bh)_mm512_unpackhi_epi16(even, odd);
                for (int g = 0; g < Q; g++) {
                    const __m512bh weights = (__m512bh)_mm512_set1_epi32(pairs[g][t / 2]);
                    low[g][i] = _mm512_dpbf16_ps(low[g][i], weights, left);
                    high[g][i] = _mm512_dpbf16_ps(high[g][i], weights, right);
                }
            }
        for (int g = 0; g < Q; g++)
            for (int i = 0; i < strip; i++) {
                states[g].sums[2 * (first + i)] = low[g][i];
                states[g].sums[2 * (first + i) + 1] = high[g][i];
            }
    }
}

// `unpack` works on quarters of a vector: it leaves columns 0-3, 8-11, … in one vector and 4-7, 12-15, … in the next.
inline void in_order(v16 *sums, int vectors) {
    for (int i = 0; i < vectors; i += 2) {
        const v16 low = sums[i], high = sums[i + 1];
        sums[i] = __builtin_shufflevector(low, high, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        sums[i + 1] = __builtin_shufflevector(low, high, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    }
}

#endif

// The queries of one KV head, prepared for a tile's kernel, and that kernel.
template <typename T, int V_>
struct Attention {
    v16 query[MAX_GROUP * MAX_VECTORS];

    // `count` vectors of queries, which become number `at` and on.
    void prepare(const T *q, int64_t at, int64_t count, float scale) {
        for (int64_t i = 0; i < count; i++) query[at + i] = load16(q + i * 16) * scale;
    }

    template <int Q>
    void tile(int64_t g, const T *k, const T *v, int count, const Seen *seen, int vectors, const Call &d, State *states) const {
        attend_tile<T, V_, Q>(query + g * vectors, k, v, count, seen, vectors, d.softcap, states);
    }

    void finish(State &, int) const {}
};

#ifdef __AVX512BF16__

template <int V_>
    requires(V_ > 0 && V_ % 2 == 0)
struct Attention<bf16, V_> {
    __m512bh query[MAX_GROUP * MAX_VECTORS / 2];

    void prepare(const bf16 *q, int64_t at, int64_t count, float) { std::memcpy(query + at / 2, q, count * 32); }

    template <int Q>
    void tile(int64_t g, const bf16 *k, const bf16 *v, int count, const Seen *seen, int vectors, const Call &d,
              State *states) const {
        attend_tile_bf16<V_, Q>(query + g * vectors / 2, k, v, count, seen, vectors, d.scale, d.softcap, states);
    }

    void finish(State &state, int vectors) const { in_order(state.sums, vectors); }
};

#endif

// `rows` neighbouring rows of a sequence over tokens [begin, end), for KV heads from `head` on. Row i, whose own position
// is last + i, sees up to itself and no further back than the window. States: [count, rows, G].
template <typename T, int V_>
void attend(const Call &d, int64_t sequence, const T *q, int64_t rows, int64_t last, int64_t head, int64_t head_count,
            int64_t begin, int64_t end, State *states) {
    const int64_t C = d.head_dim, S = d.block_size, G = d.heads / d.kv_heads, V = V_ ? V_ : C / 16, queries = rows * G;
    const T *keys = static_cast<const T *>(d.kv) + head * S * C;
    const int64_t to_values = d.blocks * d.kv_heads * S * C;
    Attention<T, V_> attention;
    for (int64_t h = 0; h < head_count; h++)
        for (int64_t row = 0; row < rows; row++)
            attention.prepare(q + (row * d.heads + (head + h) * G) * C, (h * queries + row * G) * V, G * V, d.scale);
    for (int64_t g = 0; g < head_count * queries; g++) {
        states[g].highest = -std::numeric_limits<float>::infinity();
        states[g].total = 0;
        for (int64_t i = 0; i < V; i++) states[g].sums[i] = v16{};
    }
    for (int64_t first = begin; first < end;) {
        const int64_t block = d.tables[sequence * d.table_width + first / S], offset = first % S;
        const int count = int(std::min<int64_t>({TILE, S - offset, end - first}));
        const T *k = keys + (block * d.kv_heads * S + offset) * C, *next = nullptr;
        if (first + count < end) {
            const int64_t ahead = d.tables[sequence * d.table_width + (first + count) / S];
            next = keys + (ahead * d.kv_heads * S + (first + count) % S) * C;
        }
        Seen seen[MAX_GROUP];
        for (int64_t row = 0; row < rows; row++) {
            const int64_t own = last + row, oldest = d.window ? own - d.window + 1 : 0;
            const Seen part{int(std::clamp<int64_t>(oldest - first, 0, count)), int(std::clamp<int64_t>(own + 1 - first, 0, count))};
            std::fill_n(seen + row * G, G, part);
        }
        for (int64_t h = 0; h < head_count; h++, k += S * C) {
            if (next) {  // blocks lie anywhere: no hardware prefetcher sees the next one coming
                const char *at = (const char *)(next + h * S * C);
                const int64_t bytes = std::min<int64_t>(TILE, S) * C * sizeof(T), values = to_values * sizeof(T);
                for (int64_t line = 0; line < bytes; line += 64) {
                    __builtin_prefetch(at + line, 0, 2);
                    __builtin_prefetch(at + values + line, 0, 2);
                }
            }
            State *own = states + h * queries;
            int64_t g = 0;
            const int64_t base = h * queries;
            for (; g + 8 <= queries; g += 8) attention.template tile<8>(base + g, k, k + to_values, count, seen + g, V, d, own + g);
            for (; g + 4 <= queries; g += 4) attention.template tile<4>(base + g, k, k + to_values, count, seen + g, V, d, own + g);
            for (; g + 2 <= queries; g += 2) attention.template tile<2>(base + g, k, k + to_values, count, seen + g, V, d, own + g);
            for (; g < queries; g++) attention.template tile<1>(base + g, k, k + to_values, count, seen + g, V, d, own + g);
        }
        first += count;
    }
    for (int64_t g = 0; g < head_count * queries; g++) attention.finish(states[g], V);
}

template <typename T>
void write_out(T *out, const v16 *sums, float total, int64_t C) {
    float values[MAX_VECTORS * 16];
    for (int64_t i = 0; i < C / 16; i++) store16(values + i * 16, sums[i] / total);
    for (int64_t c = 0; c < C; c++) store(out[c], values[c]);
}

// Join the chunks of one row and KV head, `stride` states apart: weights are rescaled to the highest maximum (log-sum-exp merge).
template <typename T>
void merge_chunks(const Call &d, int64_t row, int64_t kv_head, int64_t chunks, int64_t stride, const State *states) {
    const int64_t C = d.head_dim, G = d.heads / d.kv_heads;
    T *out = static_cast<T *>(d.out) + (row * d.heads + kv_head * G) * C;
    for (int64_t g = 0; g < G; g++) {
        float highest = -std::numeric_limits<float>::infinity(), total = 0;
        for (int64_t i = 0; i < chunks; i++) highest = std::max(highest, states[i * stride + g].highest);
        v16 sums[MAX_VECTORS] = {};
        for (int64_t i = 0; i < chunks; i++) {
            const State &state = states[i * stride + g];
            const float weight = exp_nonpositive(state.highest - highest);
            total += weight * state.total;
            for (int64_t j = 0; j < C / 16; j++) sums[j] += weight * state.sums[j];
        }
        write_out(out + g * C, sums, total, C);
    }
}

// One thread's part: a sequence, a KV head and a range of tokens (decode) or rows (prefill).
struct Item {
    int64_t row, kv_head, begin, end;
};

template <typename T, int V_>
void decode(const Call &d, int threads) {
    // Chunks are cut at fixed positions, whatever else is in the batch: a row's result never depends on its neighbours.
    // All KV heads of a block lie side by side and are read together, unless that leaves threads without work.
    const int64_t G = d.heads / d.kv_heads;
    int64_t chunks = 0, tokens = 0;
    for (int64_t row = 0; row < d.sequences; row++) {
        chunks += (d.lengths[row] + CHUNK - 1) / CHUNK;
        tokens += d.lengths[row];
    }
    const bool together = chunks >= 2 * threads && d.heads <= MAX_GROUP;
    const int64_t heads_each = together ? d.kv_heads : 1, states_each = heads_each * G;
    std::vector<Item> items;
    std::vector<int64_t> first_item;
    for (int64_t row = 0; row < d.sequences; row++) {
        const int64_t end = d.lengths[row], begin = d.window ? std::max<int64_t>(0, end - d.window) : 0;
        for (int64_t head = 0; head < d.kv_heads; head += heads_each) {
            first_item.push_back(items.size());
            for (int64_t at = begin; at < end; at = (at / CHUNK + 1) * CHUNK)
                items.push_back({row, head, at, std::min(end, (at / CHUNK + 1) * CHUNK)});
        }
    }
    first_item.push_back(items.size());
    static thread_local std::vector<State> states;  // kept from step to step
    if (states.size() < items.size() * states_each) states.resize(items.size() * states_each);
    State *const all_states = states.data();
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (tokens * d.kv_heads > 256)
    for (size_t i = 0; i < items.size(); i++) {
        const Item &item = items[i];
        const T *q = static_cast<const T *>(d.q) + item.row * d.heads * d.head_dim;
        attend<T, V_>(d, item.row, q, 1, d.lengths[item.row] - 1, item.kv_head, heads_each, item.begin, item.end,
                      all_states + i * states_each);
    }
    const int64_t parts = d.kv_heads / heads_each;
    for (int64_t row = 0; row < d.sequences; row++)
        for (int64_t head = 0; head < d.kv_heads; head++) {
            const int64_t group = row * parts + head / heads_each;
            const State *first = all_states + first_item[group] * states_each + head % heads_each * G;
            merge_chunks<T>(d, row, head, first_item[group + 1] - first_item[group], states_each, first);
        }
}

template <typename T, int V_>
void prefill(const Call &d, int threads) {
    // As many rows together as make eight queries of one KV head: a key that was read is used eight times.
    const int64_t C = d.head_dim, G = d.heads / d.kv_heads, together = std::max<int64_t>(1, 8 / G);
    std::vector<Item> items;
    for (int64_t i = 0; i < d.sequences; i++)
        for (int64_t kv_head = 0; kv_head < d.kv_heads; kv_head++)
            for (int64_t row = d.starts[i]; row < d.starts[i + 1]; row += together)
                items.push_back({i, kv_head, row, std::min<int64_t>(d.starts[i + 1], row + together)});
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) if (items.size() > 8)
    for (size_t i = 0; i < items.size(); i++) {
        const Item &item = items[i];
        const int64_t rows = item.end - item.begin;
        const int64_t last = d.lengths[item.row] - d.starts[item.row + 1] + item.begin;  // position of the first row
        const int64_t oldest = d.window ? std::max<int64_t>(0, last - d.window + 1) : 0;
        State states[MAX_GROUP];
        const T *q = static_cast<const T *>(d.q) + item.begin * d.heads * C;
        attend<T, V_>(d, item.row, q, rows, last, item.kv_head, 1, oldest, last + rows, states);
        T *out = static_cast<T *>(d.out) + (item.begin * d.heads + item.kv_head * G) * C;
        for (int64_t row = 0; row < rows; row++)
            for (int64_t g = 0; g < G; g++) {
                const State &state = states[row * G + g];
                write_out(out + (row * d.heads + g) * C, state.sums, state.total, C);
            }
    }
}

template <typename T, int V_>
void attention(const Call &d, int threads) {
    d.starts ? prefill<T, V_>(d, threads) : decode<T, V_>(d, threads);
}

template <typename T>
void attention_any(const Call &d, int threads) {
    switch (d.head_dim) {
        case 64: return attention<T, 4>(d, threads);
        case 128: return attention<T, 8>(d, threads);
        default: return attention<T, 0>(d, threads);
    }
}

template <typename T>
void rotate(const T *x, T *out, const float *cos_sin, int64_t C) {
    const int64_t half = C / 2;
    const float *cosine = cos_sin, *sine = cos_sin + half;
#pragma omp simd
    for (int64_t c = 0; c < half; c++) {
        const float left = load(x[c]), right = load(x[c + half]);
        store(out[c], left * cosine[c] - right * sine[c]);
        store(out[c + half], right * cosine[c] + left * sine[c]);
    }
}

template <typename T>
void write_kv(const T *q, const T *k, const T *v, T *q_out, T *kv, const float *cos_sin, const int64_t *positions,
              const int64_t *slots, int64_t rows, int64_t heads, int64_t kv_heads, int64_t C, int64_t blocks, int64_t S,
              int64_t q_stride, int64_t k_stride, int64_t v_stride, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * heads > 256)
    for (int64_t row = 0; row < rows; row++) {
        const float *angles = cos_sin + positions[row] * C;
        for (int64_t h = 0; h < heads; h++) rotate(q + row * q_stride + h * C, q_out + (row * heads + h) * C, angles, C);
        T *target = kv + (slots[row] / S * kv_heads * S + slots[row] % S) * C;
        for (int64_t h = 0; h < kv_heads; h++, target += S * C) {
            rotate(k + row * k_stride + h * C, target, angles, C);
            std::memcpy(target + blocks * kv_heads * S * C, v + row * v_stride + h * C, C * sizeof(T));
        }
    }
}

template <typename T>
void rms_norm(const T *x, T *residual, const float *weight, T *out, int64_t rows, int64_t D, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * D > 32768)
    for (int64_t row = 0; row < rows; row++) {
        const T *in = x + row * D;
        if (residual) {
            T *sum = residual + row * D;
#pragma omp simd
            for (int64_t i = 0; i < D; i++) store(sum[i], load(sum[i]) + load(in[i]));
            in = sum;
        }
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < D; i++) squares += load(in[i]) * load(in[i]);
        const float scale = 1.0f / std::sqrt(squares / D + eps);
#pragma omp simd
        for (int64_t i = 0; i < D; i++) store(out[row * D + i], load(in[i]) * scale * weight[i]);
    }
}

template <typename T>
void silu_and_mul(const T *x, T *out, int64_t rows, int64_t F, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * F > 16384)
    for (int64_t row = 0; row < rows; row++) {
        const T *gate = x + row * 2 * F, *up = gate + F;
#pragma omp simd
        for (int64_t i = 0; i < F; i++) {
            const float g = load(gate[i]), e = exp_nonpositive(-std::fabs(g));
            // sigmoid(g) from exp(-|g|), which cannot overflow.
            store(out[row * F + i], g * (g >= 0 ? 1.0f : e) / (1.0f + e) * load(up[i]));
        }
    }
}

// int8 weights. Letters: R rows, I input features, O output features.
//
// A panel holds PANEL outputs: for each four inputs the four weights of each output lie together, 64 bytes for
// sixteen outputs, as the dot-product instructions read them. Activations are quantized row by row to 8 bits and
// shifted by 128 to be unsigned; `shift` undoes that: 128 times the sum of an output's weights.

constexpr int64_t PANEL = 32;

struct Int8Weight {
    const int8_t *panels;   // [ceil(O / PANEL), ceil(I / 4), 2, 16, 4]
    const float *scales;    // [O]
    const int32_t *shifts;  // [O]
    const float *bias;      // [O] or null
    int64_t outputs, inputs;
};

template <typename T>
void pack_int8(const T *weight, int8_t *panels, float *scales, int32_t *shifts, int64_t O, int64_t I, int threads) {
    const int64_t quads = (I + 3) / 4;
#pragma omp parallel for num_threads(threads)
    for (int64_t o = 0; o < O; o++) {
        float highest = 0;
        for (int64_t i = 0; i < I; i++) highest = std::max(highest, std::fabs(load(weight[o * I + i])));
        const float scale = highest > 0 ? highest / 127 : 1.0f;
        int32_t sum = 0;
        int8_t *column = panels + o / PANEL * quads * PANEL * 4 + o % PANEL * 4;
        for (int64_t i = 0; i < I; i++) {
            const int value = int(std::nearbyintf(load(weight[o * I + i]) / scale));
            column[i / 4 * PANEL * 4 + i % 4] = int8_t(value);
            sum += value;
        }
        scales[o] = scale;
        shifts[o] = 128 * sum;
    }
}

template <typename T>
float quantize_row(const T *x, uint8_t *out, int64_t I) {
    float highest = 0;
#pragma omp simd reduction(max : highest)
    for (int64_t i = 0; i < I; i++) highest = std::max(highest, std::fabs(load(x[i])));
    const float inverse = highest > 0 ? 1 / (highest / 127) : 0.0f;
#pragma omp simd
    for (int64_t i = 0; i < I; i++) out[i] = uint8_t(int(load(x[i]) * inverse + 128.5f));
    return highest / 127;
}

// R rows by one panel: sums[r][o] over all inputs. Rows are `stride` bytes apart.
template <int R>
void multiply_panel(const uint8_t *x, int64_t stride, const int8_t *panel, int64_t quads, int32_t (*sums)[PANEL]) {
#ifdef __AVX512VNNI__
    __m512i low[R] = {}, high[R] = {};
    for (int64_t i = 0; i < quads; i++) {
        const __m512i first = _mm512_loadu_si512(panel + i * PANEL * 4), second = _mm512_loadu_si512(panel + i * PANEL * 4 + 64);
        for (int r = 0; r < R; r++) {
            int32_t four;
            std::memcpy(&four, x + r * stride + i * 4, 4);
            const __m512i inputs = _mm512_set1_epi32(four);
            low[r] = _mm512_dpbusd_epi32(low[r], inputs, first);
            high[r] = _mm512_dpbusd_epi32(high[r], inputs, second);
        }
    }
    for (int r = 0; r < R; r++) {
        _mm512_storeu_si512(sums[r], low[r]);
        _mm512_storeu_si512(sums[r] + 16, high[r]);
    }
#else
    for (int r = 0; r < R; r++) {
        std::fill_n(sums[r], PANEL, 0);
        for (int64_t i = 0; i < quads; i++)
            for (int o = 0; o < PANEL; o++)
                for (int j = 0; j < 4; j++)
                    sums[r][o] += int32_t(x[r * stride + i * 4 + j]) * panel[i * PANEL * 4 + o * 4 + j];
    }
#endif
}

template <typename T>
void linear_int8(const T *x, const Int8Weight &w, T *out, int64_t rows, int threads) {
    constexpr int TALL = 8;
    const int64_t I = w.inputs, O = w.outputs, quads = (I + 3) / 4, stride = quads * 4;
    static thread_local std::vector<uint8_t> quantized;  // kept from call to call
    static thread_local std::vector<float> row_scales;
    quantized.assign(rows * stride, 128);
    row_scales.resize(rows);
    uint8_t *const xq = quantized.data();
    float *const scales = row_scales.data();
#pragma omp parallel for num_threads(threads) if (rows * I > 65536)
    for (int64_t r = 0; r < rows; r++) scales[r] = quantize_row(x + r * I, xq + r * stride, I);
#pragma omp parallel for num_threads(threads)
    for (int64_t panel = 0; panel < (O + PANEL - 1) / PANEL; panel++) {
        const int8_t *weights = w.panels + panel * stride * PANEL;
        const int64_t first = panel * PANEL, count = std::min(PANEL, O - first);
        int32_t sums[TALL][PANEL];
        for (int64_t row = 0; row < rows;) {
            const uint8_t *at = xq + row * stride;
            int64_t done = 1;
            if (row + TALL <= rows) multiply_panel<TALL>(at, stride, weights, quads, sums), done = TALL;
            else if (row + 4 <= rows) multiply_panel<4>(at, stride, weights, quads, sums), done = 4;
            else if (row + 2 <= rows) multiply_panel<2>(at, stride, weights, quads, sums), done = 2;
            else multiply_panel<1>(at, stride, weights, quads, sums);
            for (int64_t r = 0; r < done; r++)
                for (int64_t o = 0; o < count; o++) {
                    const float value = float(sums[r][o] - w.shifts[first + o]) * w.scales[first + o] * scales[row + r];
                    store(out[(row + r) * O + first + o], w.bias ? value + w.bias[first + o] : value);
                }
            row += done;
        }
    }
}

}  // namespace

extern "C" {

int kvasir_max_group() { return MAX_GROUP; }

// Decode where `starts` is null, else prefill.
void kvasir_attention(int is_bf16, const void *q, const void *kv, const int32_t *tables, const int32_t *lengths,
                      const int32_t *starts, void *out, int64_t sequences, int64_t heads, int64_t kv_heads,
                      int64_t head_dim, int64_t blocks, int64_t block_size, int64_t table_width, float scale,
                      float softcap, int64_t window, int threads) {
    const Call call{q, kv, tables, lengths, starts, out, sequences, heads, kv_heads, head_dim, blocks, block_size,
                    table_width, scale, softcap, window};
    is_bf16 ? attention_any<bf16>(call, threads) : attention_any<float>(call, threads);
}

void kvasir_write_kv(int is_bf16, const void *q, const void *k, const void *v, void *q_out, void *kv,
                     const float *cos_sin, const int64_t *positions, const int64_t *slots, int64_t rows, int64_t heads,
                     int64_t kv_heads, int64_t head_dim, int64_t blocks, int64_t block_size, int64_t q_stride,
                     int64_t k_stride, int64_t v_stride, int threads) {
    auto run = [&](auto zero) {
        using T = decltype(zero);
        write_kv<T>((const T *)q, (const T *)k, (const T *)v, (T *)q_out, (T *)kv, cos_sin, positions, slots, rows,
                    heads, kv_heads, head_dim, blocks, block_size, q_stride, k_stride, v_stride, threads);
    };
    is_bf16 ? run(bf16{}) : run(float{});
}

// `residual` may be null; else it becomes residual + x, and that is normalised.
void kvasir_rms_norm(int is_bf16, const void *x, void *residual, const float *weight, void *out, int64_t rows,
                     int64_t features, float eps, int threads) {
    is_bf16 ? rms_norm<bf16>((const bf16 *)x, (bf16 *)residual, weight, (bf16 *)out, rows, features, eps, threads)
            : rms_norm<float>((const float *)x, (float *)residual, weight, (float *)out, rows, features, eps, threads);
}

void kvasir_silu_and_mul(int is_bf16, const void *x, void *out, int64_t rows, int64_t features, int threads) {
    is_bf16 ? silu_and_mul<bf16>((const bf16 *)x, (bf16 *)out, rows, features, threads)
            : silu_and_mul<float>((const float *)x, (float *)out, rows, features, threads);
}

// Bytes of the panels of an [outputs, inputs] weight.
int64_t kvasir_int8_bytes(int64_t outputs, int64_t inputs) {
    return (outputs + PANEL - 1) / PANEL * PANEL * ((inputs + 3) / 4 * 4);
}

// `panels` is zeroed memory of kvasir_int8_bytes.
void kvasir_pack_int8(int is_bf16, const void *weight, int8_t *panels, float *scales, int32_t *shifts, int64_t outputs,
                      int64_t inputs, int threads) {
    is_bf16 ? pack_int8((const bf16 *)weight, panels, scales, shifts, outputs, inputs, threads)
            : pack_int8((const float *)weight, panels, scales, shifts, outputs, inputs, threads);
}

void kvasir_linear_int8(int is_bf16, const void *x, const int8_t *panels, const float *scales, const int32_t *shifts,
                        const float *bias, void *out, int64_t rows, int64_t outputs, int64_t inputs, int threads) {
    const Int8Weight weight{panels, scales, shifts, bias, outputs, inputs};
    is_bf16 ? linear_int8((const bf16 *)x, weight, (bf16 *)out, rows, threads)
            : linear_int8((const float *)x, weight, (float *)out, rows, threads);
}
}
