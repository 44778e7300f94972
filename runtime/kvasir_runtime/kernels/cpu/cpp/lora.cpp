// LoRA: adds B(A x) of each row's own adapter to the output of a linear layer, all adapters of a batch in one call.
//
// Letters: N rows that have an adapter, sorted by adapter into groups; P parts of a fused layer (query, key, value); R an
// adapter's rank, padded to a multiple of LANES. Both matrices lie in panels that are read from beginning to end:
// A as [R / LANES][inputs][LANES], B as [ceil(outputs / LANES)][R][LANES]. The scale is part of B.

#include "vectors.h"

namespace {

constexpr int LANES = 16;
constexpr int ROWS = 8;          // computed together: as many sums stay in registers
constexpr int TASK_ROWS = 64;    // rows of one task
constexpr int TASK_PANELS = 32;  // panels of outputs of one task

// One adapter's matrices of one part; rank 0: the adapter does not change it.
struct Matrices {
    const void *a, *b;
    int64_t rank;
};

struct LoraCall {
    const void *x;            // rows of x_stride numbers
    void *out;                // rows of out_stride numbers
    const int32_t *rows;      // [N]
    const int32_t *starts;    // [groups + 1], into rows
    const int32_t *slots;     // [groups]
    const Matrices *table;    // [slots][parts]
    const int64_t *offsets;   // [parts + 1]: where each part's outputs begin
    float *middle;            // [N][middle_stride]: A x
    int64_t x_stride, out_stride, groups, parts, inputs, middle_stride;
};

struct Task {
    int group, part;
    int64_t first, last;  // rows
    int64_t panel;        // of the rank (shrink) or the first one of the outputs (expand)
};

inline void store_lanes(float *to, v16 v) { store16(to, v); }

inline void store_lanes(bf16 *to, v16 v) {
#ifdef __AVX512BF16__
    const __m256bh narrow = _mm512_cvtneps_pbh((__m512)v);
    std::memcpy(to, &narrow, sizeof narrow);
#else
    for (int i = 0; i < LANES; i++) store(to[i], v[i]);
#endif
}

#ifdef __AVX512BF16__

// Two rows of a panel as sixteen pairs.
inline __m512bh pairs_of(const bf16 *rows) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (__m512bh)_mm512_permutexvar_epi16(order, _mm512_loadu_si512(rows));
}

inline __m512bh pair_everywhere(const bf16 *x) {
    int32_t pair;
    std::memcpy(&pair, x, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
}

// sums[r] += the products of `count` numbers of each x[r] with as many rows of a panel. Few rows get several sums each,
// so that an addition need not wait for the one before.
template <int R>
inline void multiply(const bf16 *const *x, const bf16 *panel, int64_t count, v16 *sums) {
    constexpr int CHAINS = ROWS / R;
    __m512 chains[R][CHAINS] = {};
    int64_t k = 0;
    for (; k + 2 * CHAINS <= count; k += 2 * CHAINS)
        for (int c = 0; c < CHAINS; c++) {
            const __m512bh weights = pairs_of(panel + (k + 2 * c) * LANES);
            for (int r = 0; r < R; r++)
                chains[r][c] = _mm512_dpbf16_ps(chains[r][c], pair_everywhere(x[r] + k + 2 * c), weights);
        }
    for (; k + 2 <= count; k += 2) {
        const __m512bh weights = pairs_of(panel + k * LANES);
        for (int r = 0; r < R; r++) chains[r][0] = _mm512_dpbf16_ps(chains[r][0], pair_everywhere(x[r] + k), weights);
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < CHAINS; c++) sums[r] += (v16)chains[r][c];
    if (k < count)
        for (int r = 0; r < R; r++) sums[r] += load16(panel + k * LANES) * load(x[r][k]);
}

#endif

template <int R, typename T>
inline void multiply(const T *const *x, const T *panel, int64_t count, v16 *sums) {
    constexpr int CHAINS = ROWS / R;
    v16 chains[R][CHAINS] = {};
    int64_t k = 0;
    for (; k + CHAINS <= count; k += CHAINS)
        for (int c = 0; c < CHAINS; c++) {
            const v16 weights = load16(panel + (k + c) * LANES);
            for (int r = 0; r < R; r++) chains[r][c] += weights * load(x[r][k + c]);
        }
    for (; k < count; k++)
        for (int r = 0; r < R; r++) chains[r][0] += load16(panel + k * LANES) * load(x[r][k]);
    for (int r = 0; r < R; r++)
        for (int c = 0; c < CHAINS; c++) sums[r] += chains[r][c];
}

// Calls work(first, constant<R>) for blocks of 8, 4, 2 and 1 rows.
template <typename Work>
inline void by_rows(int64_t first, int64_t last, Work work) {
    for (; first + 8 <= last; first += 8) work(first, std::integral_constant<int, 8>{});
    for (; first + 4 <= last; first += 4) work(first, std::integral_constant<int, 4>{});
    for (; first + 2 <= last; first += 2) work(first, std::integral_constant<int, 2>{});
    for (; first < last; first++) work(first, std::integral_constant<int, 1>{});
}

// middle = A x for one panel of the rank, kept in the type of x.
template <typename T>
void shrink(const LoraCall &d, const Task &task, const Matrices &m, int64_t column) {
    const T *panel = static_cast<const T *>(m.a) + task.panel * d.inputs * LANES;
    T *middle = reinterpret_cast<T *>(d.middle) + column + task.panel * LANES;
    by_rows(task.first, task.last, [&](int64_t first, auto size) {
        constexpr int R = decltype(size)::value;
        const T *x[R];
        v16 sums[R] = {};
        for (int r = 0; r < R; r++) x[r] = static_cast<const T *>(d.x) + d.rows[first + r] * d.x_stride;
        multiply<R>(x, panel, d.inputs, sums);
        for (int r = 0; r < R; r++) store_lanes(middle + (first + r) * d.middle_stride, sums[r]);
    });
}

// out += B middle for some panels of a part's outputs.
template <typename T>
void expand(const LoraCall &d, const Task &task, const Matrices &m, int64_t column) {
    const int64_t begin = d.offsets[task.part], size = d.offsets[task.part + 1] - begin;
    const int64_t panels = (size + LANES - 1) / LANES, end = std::min(task.panel + TASK_PANELS, panels);
    const T *middle = reinterpret_cast<const T *>(d.middle) + column;
    for (int64_t panel = task.panel; panel < end; panel++) {
        const T *weights = static_cast<const T *>(m.b) + panel * m.rank * LANES;
        const int64_t at = panel * LANES, width = std::min<int64_t>(LANES, size - at);
        by_rows(task.first, task.last, [&](int64_t first, auto count) {
            constexpr int R = decltype(count)::value;
            const T *y[R];
            v16 sums[R] = {};
            for (int r = 0; r < R; r++) y[r] = middle + (first + r) * d.middle_stride;
            multiply<R>(y, weights, m.rank, sums);
            for (int r = 0; r < R; r++) {
                T *to = static_cast<T *>(d.out) + d.rows[first + r] * d.out_stride + begin + at;
                if (width == LANES)
                    store_lanes(to, load16(to) + sums[r]);
                else
                    for (int i = 0; i < width; i++) store(to[i], load(to[i]) + sums[r][i]);
            }
        });
    }
}

template <typename T>
void lora(const LoraCall &d, int threads) {
    std::vector<Task> shrinks, expands;
    std::vector<int64_t> columns(d.groups * d.parts);  // where a part's numbers begin in a row of `middle`
    for (int g = 0; g < d.groups; g++) {
        int64_t column = 0;
        for (int p = 0; p < d.parts; p++) {
            const int64_t rank = d.table[d.slots[g] * d.parts + p].rank;
            columns[g * d.parts + p] = column;
            column += rank;
            if (rank == 0) continue;
            const int64_t panels = (d.offsets[p + 1] - d.offsets[p] + LANES - 1) / LANES;
            for (int64_t first = d.starts[g]; first < d.starts[g + 1]; first += TASK_ROWS) {
                const int64_t last = std::min<int64_t>(first + TASK_ROWS, d.starts[g + 1]);
                for (int64_t panel = 0; panel < rank / LANES; panel++) shrinks.push_back({g, p, first, last, panel});
                for (int64_t panel = 0; panel < panels; panel += TASK_PANELS)
                    expands.push_back({g, p, first, last, panel});
            }
        }
    }
    const int64_t first_count = shrinks.size(), second_count = expands.size();
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < first_count; i++) {
            const Task &t = shrinks[i];
            shrink<T>(d, t, d.table[d.slots[t.group] * d.parts + t.part], columns[t.group * d.parts + t.part]);
        }
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < second_count; i++) {
            const Task &t = expands[i];
            expand<T>(d, t, d.table[d.slots[t.group] * d.parts + t.part], columns[t.group * d.parts + t.part]);
        }
    }
}

}  // namespace

extern "C" {

// `table` holds three 64-bit numbers for each slot and part: the addresses of A and B, and the padded rank.
void kvasir_lora(int is_bf16, const void *x, void *out, const int32_t *rows, const int32_t *starts,
                 const int32_t *slots, const void *table, const int64_t *offsets, void *middle, int64_t x_stride,
                 int64_t out_stride, int64_t groups, int64_t parts, int64_t inputs, int64_t middle_stride,
                 int threads) {
    const LoraCall call{x, out, rows, starts, slots, static_cast<const Matrices *>(table), offsets,
                        static_cast<float *>(middle), x_stride, out_stride, groups, parts, inputs, middle_stride};
    is_bf16 ? lora<bf16>(call, threads) : lora<float>(call, threads);
}
}
