// Attention over a paged KV cache.
//
// Letters: T rows, N decode rows, H query heads, K KV heads, G = H / K, C head dimension, B blocks, S tokens in a block.
//
// What one KV head keeps in a block is S rows of C numbers, or, where the CPU multiplies pairs of bfloat16 (see
// `paired` in vectors.h), tiles of TILE tokens. A tile of keys is [C / 2, TILE, 2]: a vector holds the same two numbers
// of sixteen tokens, and scores come out side by side. A tile of values is [TILE / 2, C, 2]: a vector holds sixteen
// numbers of two tokens. So neither needs a sum across a vector.

#include "vectors.h"

namespace {

constexpr int CHUNK = 512;      // tokens whose attention is computed by one thread at a time
constexpr int MAX_GROUP = 32;   // query heads of a KV head
constexpr int MAX_VECTORS = 16; // of a head: head dimensions up to 256
constexpr int QUERIES = 16;     // of a KV head that prefill computes together
constexpr float HEADROOM = 8;   // a new highest score is noted this much higher, so that few later ones exceed it

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

// What one query has seen so far: a number that no score exceeds, the sums of exponentials against it (by place in a
// tile; theirs is the total) and the weighted sum of values.
struct State {
    float highest;
    v16 totals;
    v16 sums[MAX_VECTORS];
};

// Which tokens of a tile a query sees: those of number `from` up to, not including, `to`.
struct Seen {
    int from, to;
};

// The tile after this one. Blocks lie anywhere, so that no hardware prefetcher sees it coming; it is fetched part by
// part while this one is computed, as a core has few loads in flight.
struct Next {
    const char *keys;  // null: none
    int64_t to_values, token_bytes;

    void fetch(int token, int count) const {
        if (keys)
            for (const char *at = keys + token * token_bytes, *end = at + count * token_bytes; at < end; at += 64) {
                __builtin_prefetch(at, 0, 2);
                __builtin_prefetch(at + to_values, 0, 2);
            }
    }
};

// Softmax weights of a tile's scores; rescales the state when one of them is the highest so far.
inline __attribute__((always_inline)) v16 weigh(v16 s, Seen seen, int vectors, float softcap, State &state) {
    const v16 lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    if (softcap > 0)
        for (int t = 0; t < TILE; t++) s[t] = softcap * std::tanh(s[t] / softcap);
    const bool whole = seen.from == 0 && seen.to == TILE;
    const v16i shown = (lanes >= float(seen.from)) & (lanes < float(seen.to));
    if (!whole) s = shown ? s : all(-std::numeric_limits<float>::infinity());
    if (any(s > state.highest)) {
        const float highest = highest_of(s) + HEADROOM, shrink = exp_nonpositive(state.highest - highest);
        state.highest = highest;
        state.totals *= shrink;
        for (int i = 0; i < vectors; i++) state.sums[i] *= shrink;
    }
    const v16 weights = exp16(s - state.highest);
    return whole ? weights : shown ? weights : v16{};
}

// `count` (at most TILE) consecutive tokens for Q queries. V vectors make a head; 0: told at run time.
template <typename T, int V_, int Q>
inline void attend_tile(const v16 *query, const T *k, const T *v, int count, const Seen *seen, int vectors,
                        float softcap, Next next, State *states) {
    const int V = V_ ? V_ : vectors;
    v16 score[Q][TILE];
    for (int t = 0; t < TILE; t++) {
        v16 dot[Q] = {};
        next.fetch(t, 1);
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
        states[g].totals += weight;
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

// As attend_tile, on tiles of pairs. Weights are rounded to bfloat16 as the values are; the totals are of rounded ones.
template <int V_, int Q>
inline void attend_tile_of_pairs(const int32_t *query, const bf16 *k, const bf16 *v, int count, const Seen *seen, int vectors,
                                 float scale, float softcap, Next next, State *states) {
    const int V = V_ ? V_ : vectors, P = V * 8;  // pairs of a head
    constexpr int CHAINS = 2;  // sums that do not wait for each other; as many for any Q, so that a row's bits are the same
    __m512 dots[CHAINS][Q] = {};
    for (int p = 0; p < P; p += CHAINS)
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++) {
            const __m512bh keys = (__m512bh)_mm512_loadu_si512(k + (p + i) * 2 * TILE);
#pragma GCC unroll 16
            for (int g = 0; g < Q; g++)
                dots[i][g] = _mm512_dpbf16_ps(dots[i][g], keys, (__m512bh)_mm512_set1_epi32(query[g * P + p + i]));
        }
    int32_t weights[Q][TILE / 2];
#pragma GCC unroll 16
    for (int g = 0; g < Q; g++) {
        v16 score = dots[0][g];
#pragma GCC unroll 16
        for (int i = 1; i < CHAINS; i++) score += v16(dots[i][g]);
        const __m256bh narrow = _mm512_cvtneps_pbh(weigh(score * scale, seen[g], V, softcap, states[g]));
        std::memcpy(weights[g], &narrow, sizeof narrow);
        states[g].totals += load16(reinterpret_cast<const bf16 *>(weights[g]));
        next.fetch(g * TILE / Q, TILE / Q);
    }
    constexpr int STRIP = Q >= 8 ? 2 : 4;  // vectors of a value whose sums stay in registers
    for (int first = 0; first < V; first += STRIP) {
        const int strip = V_ % STRIP == 0 && V_ ? STRIP : std::min(STRIP, V - first);
        __m512 sums[Q][STRIP];
#pragma GCC unroll 16
        for (int g = 0; g < Q; g++)
#pragma GCC unroll 4
            for (int i = 0; i < strip; i++) sums[g][i] = states[g].sums[first + i];
        for (int t = 0; t < count; t += 2)
#pragma GCC unroll 4
            for (int i = 0; i < strip; i++) {
                __m512i both = _mm512_loadu_si512(v + (t / 2 * V + first + i) * 32);
                // Whatever an earlier owner left in the place of a token to come: nothing times that may be NaN.
                if (t + 1 == count) both = _mm512_and_si512(both, _mm512_set1_epi32(0xffff));
#pragma GCC unroll 16
                for (int g = 0; g < Q; g++)
                    sums[g][i] = _mm512_dpbf16_ps(sums[g][i], (__m512bh)both, (__m512bh)_mm512_set1_epi32(weights[g][t / 2]));
            }
#pragma GCC unroll 16
        for (int g = 0; g < Q; g++)
#pragma GCC unroll 4
            for (int i = 0; i < strip; i++) states[g].sums[first + i] = sums[g][i];
    }
}

#endif

// The queries of one KV head, prepared for a tile's kernel, and that kernel; V_ vectors make a head.
template <typename T_, int V_>
struct Rows {
    using T = T_;
    static constexpr int V = V_;
    v16 query[MAX_GROUP * MAX_VECTORS];

    // `count` vectors of queries, which become number `at` and on.
    void prepare(const T *q, int64_t at, int64_t count, float scale) {
        for (int64_t i = 0; i < count; i++) query[at + i] = load16(q + i * 16) * scale;
    }

    template <int Q>
    void tile(int64_t g, const T *k, const T *v, int count, const Seen *seen, int vectors, const Call &d, Next next,
              State *states) const {
        attend_tile<T, V_, Q>(query + g * vectors, k, v, count, seen, vectors, d.softcap, next, states);
    }
};

template <int V_>
using FloatRows = Rows<float, V_>;
template <int V_>
using Bf16Rows = Rows<bf16, V_>;

#ifdef __AVX512BF16__

template <int V_>
struct Bf16Pairs {
    using T = bf16;
    static constexpr int V = V_;
    int32_t query[MAX_GROUP * MAX_VECTORS * 8];

    void prepare(const bf16 *q, int64_t at, int64_t count, float) { std::memcpy(query + at * 8, q, count * 32); }

    template <int Q>
    void tile(int64_t g, const bf16 *k, const bf16 *v, int count, const Seen *seen, int vectors, const Call &d, Next next,
              State *states) const {
        attend_tile_of_pairs<V_, Q>(query + g * vectors * 8, k, v, count, seen, vectors, d.scale, d.softcap, next, states);
    }
};

#endif

// `rows` neighbouring rows of a sequence over tokens [begin, end), for KV heads from `head` on. Row i, whose own position
// is last + i, sees up to itself and no further back than the window. States: [count, rows, G].
template <typename Method>
void attend(const Call &d, int64_t sequence, const typename Method::T *q, int64_t rows, int64_t last, int64_t head,
            int64_t head_count, int64_t begin, int64_t end, State *states) {
    using T = typename Method::T;
    const int64_t C = d.head_dim, S = d.block_size, G = d.heads / d.kv_heads, queries = rows * G;
    const int64_t V = Method::V ? Method::V : C / 16;
    const T *keys = static_cast<const T *>(d.kv) + head * S * C;
    const int64_t to_values = d.blocks * d.kv_heads * S * C;
    Method attention;
    for (int64_t h = 0; h < head_count; h++)
        for (int64_t row = 0; row < rows; row++)
            attention.prepare(q + (row * d.heads + (head + h) * G) * C, (h * queries + row * G) * V, G * V, d.scale);
    for (int64_t g = 0; g < head_count * queries; g++) {
        states[g].highest = -std::numeric_limits<float>::infinity();
        states[g].totals = v16{};
        for (int64_t i = 0; i < V; i++) states[g].sums[i] = v16{};
    }
    if (S % TILE == 0) begin = begin / TILE * TILE;  // what a query does not see is left out below
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
            Next fetched{next ? (const char *)(next + h * S * C) : nullptr, to_values * int64_t(sizeof(T)), C * int64_t(sizeof(T))};
            State *own = states + h * queries;
            int64_t g = 0;
            const int64_t base = h * queries;
            for (; g + 8 <= queries; g += 8, fetched.keys = nullptr)
                attention.template tile<8>(base + g, k, k + to_values, count, seen + g, V, d, fetched, own + g);
            for (; g + 4 <= queries; g += 4, fetched.keys = nullptr)
                attention.template tile<4>(base + g, k, k + to_values, count, seen + g, V, d, fetched, own + g);
            for (; g + 2 <= queries; g += 2, fetched.keys = nullptr)
                attention.template tile<2>(base + g, k, k + to_values, count, seen + g, V, d, fetched, own + g);
            for (; g < queries; g++, fetched.keys = nullptr)
                attention.template tile<1>(base + g, k, k + to_values, count, seen + g, V, d, fetched, own + g);
        }
        first += count;
    }
}

template <typename T>
void write_out(T *out, const v16 *sums, float total, int64_t C) {
    for (int64_t i = 0; i < C / 16; i++) store16(out + i * 16, sums[i] / total);
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
            total += weight * sum_of(state.totals);
            for (int64_t j = 0; j < C / 16; j++) sums[j] += weight * state.sums[j];
        }
        write_out(out + g * C, sums, total, C);
    }
}

// One thread's part: a sequence, a KV head and a range of tokens (decode) or rows (prefill).
struct Item {
    int64_t row, kv_head, begin, end;
};

template <typename Method>
void decode(const Call &d, int threads) {
    using T = typename Method::T;
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
        attend<Method>(d, item.row, q, 1, d.lengths[item.row] - 1, item.kv_head, heads_each, item.begin, item.end,
                      all_states + i * states_each);
    }
    const int64_t parts = d.kv_heads / heads_each;
#pragma omp parallel for num_threads(threads) if (tokens * d.kv_heads > 256)
    for (int64_t part = 0; part < d.sequences * parts; part++)
        for (int64_t h = 0; h < heads_each; h++)
            merge_chunks<T>(d, part / parts, part % parts * heads_each + h, first_item[part + 1] - first_item[part],
                            states_each, all_states + first_item[part] * states_each + h * G);
}

template <typename Method>
void prefill(const Call &d, int threads) {
    using T = typename Method::T;
    // Neighbouring rows together: a key that was read is used by all of them.
    const int64_t C = d.head_dim, G = d.heads / d.kv_heads, together = std::max<int64_t>(1, QUERIES / G);
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
        attend<Method>(d, item.row, q, rows, last, item.kv_head, 1, oldest, last + rows, states);
        T *out = static_cast<T *>(d.out) + (item.begin * d.heads + item.kv_head * G) * C;
        for (int64_t row = 0; row < rows; row++)
            for (int64_t g = 0; g < G; g++) {
                const State &state = states[row * G + g];
                write_out(out + (row * d.heads + g) * C, state.sums, sum_of(state.totals), C);
            }
    }
}

template <typename Method>
void attention(const Call &d, int threads) {
    d.starts ? prefill<Method>(d, threads) : decode<Method>(d, threads);
}

template <template <int> typename Method>
void attention_any(const Call &d, int threads) {
    switch (d.head_dim) {
        case 64: return attention<Method<4>>(d, threads);
        case 128: return attention<Method<8>>(d, threads);
        default: return attention<Method<0>>(d, threads);
    }
}

}  // namespace

extern "C" {

int kvasir_max_group() { return MAX_GROUP; }

// Whether blocks of such a cache hold tiles of pairs.
int kvasir_kv_paired(int is_bf16, int64_t block_size) { return paired(is_bf16, block_size); }

// Decode where `starts` is null, else prefill.
void kvasir_attention(int is_bf16, const void *q, const void *kv, const int32_t *tables, const int32_t *lengths,
                      const int32_t *starts, void *out, int64_t sequences, int64_t heads, int64_t kv_heads,
                      int64_t head_dim, int64_t blocks, int64_t block_size, int64_t table_width, float scale,
                      float softcap, int64_t window, int threads) {
    const Call call{q, kv, tables, lengths, starts, out, sequences, heads, kv_heads, head_dim, blocks, block_size,
                    table_width, scale, softcap, window};
    if (!is_bf16) return attention_any<FloatRows>(call, threads);
#ifdef __AVX512BF16__
    if (paired(is_bf16, block_size)) return attention_any<Bf16Pairs>(call, threads);
#endif
    attention_any<Bf16Rows>(call, threads);
}
}
