// LoRA: adds B(A x) of each row's own adapter to the output of a linear layer, all adapters of a batch in one call.
//
// Letters: N rows that have an adapter, sorted by adapter into groups; P parts of a fused layer (query, key, value); R an
// adapter's rank, padded to a multiple of LANES. Both matrices lie in panels that are read from beginning to end: A as
// [R / LANES][inputs][LANES], B as [ceil(outputs / LANES)][R][LANES]. In bfloat16 two neighbouring numbers of the middle
// dimension stand side by side, [inputs / 2][LANES][2], as the instruction that multiplies pairs wants them. The scale
// is part of B.

#include "vectors.h"

namespace {

constexpr int LANES = 16;
constexpr int TOGETHER = 3;      // panels of ranks computed together: with 8 rows, 24 sums in registers
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

// Sixteen ranks of a part: their panel of A, and where A x for them goes in a row of `middle`.
struct RankPanel {
    const void *a;
    int64_t column;
};

struct Task {
    int group, part;
    int64_t first, last;  // rows
    int64_t panel;        // the first one: of the group's rank panels (shrink) or of the part's outputs (expand)
    int count;            // rank panels
};

// Neighbouring rows of a group: their tasks, of which the shrinking ones come first.
struct Block {
    int64_t shrink, shrink_end, expand, expand_end;
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

// How a panel is read: STEP numbers of the middle dimension at a time.
template <typename T>
struct Panel {
    static constexpr int STEP = 1;

    v16 weights;

    void read(const float *at) { weights = load16(at); }

    v16 add(v16 sum, const float *x) const { return sum + weights * *x; }

    v16 add_last(v16 sum, const float *x) const { return add(sum, x); }
};

template <>
struct Panel<bf16> {
    static constexpr int STEP = 2;

#ifdef __AVX512BF16__
    __m512bh weights;

    void read(const bf16 *at) { weights = (__m512bh)_mm512_loadu_si512(at); }

    v16 add(v16 sum, const bf16 *x) const {
        int32_t pair;
        std::memcpy(&pair, x, sizeof pair);
        return (v16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), weights);
    }

    v16 add_last(v16 sum, const bf16 *x) const {
        return (v16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(x->bits), weights);
    }
#else
    v16u weights;

    void read(const bf16 *at) { std::memcpy(&weights, at, sizeof weights); }

    v16 add(v16 sum, const bf16 *x) const {
        return sum + v16(weights << 16) * load(x[0]) + v16(weights & 0xffff0000u) * load(x[1]);
    }

    v16 add_last(v16 sum, const bf16 *x) const { return sum + v16(weights << 16) * load(x[0]); }
#endif
};

// sums[r][q] += the product of row r with panel q. Each row's number is read once for all panels; few sums are split
// into several chains, so that an addition need not wait for the one before.
template <int R, int Q, typename T>
inline void multiply(const T *const *x, const T *const *panels, int64_t count, v16 (*sums)[Q]) {
    constexpr int STEP = Panel<T>::STEP, CHAINS = R * Q >= 8 ? 1 : 8 / (R * Q), WIDTH = STEP * LANES;
    v16 chains[CHAINS][R][Q] = {};
    Panel<T> panel[Q];
    int64_t k = 0;
    for (; k + STEP * CHAINS <= count; k += STEP * CHAINS)
        for (int c = 0; c < CHAINS; c++) {
            const int64_t at = k + STEP * c;
            for (int q = 0; q < Q; q++) panel[q].read(panels[q] + at / STEP * WIDTH);
            for (int r = 0; r < R; r++)
                for (int q = 0; q < Q; q++) chains[c][r][q] = panel[q].add(chains[c][r][q], x[r] + at);
        }
    for (; k < count; k += STEP) {
        const bool whole = k + STEP <= count;
        for (int q = 0; q < Q; q++) panel[q].read(panels[q] + k / STEP * WIDTH);
        for (int r = 0; r < R; r++)
            for (int q = 0; q < Q; q++)
                chains[0][r][q] = whole ? panel[q].add(chains[0][r][q], x[r] + k)
                                        : panel[q].add_last(chains[0][r][q], x[r] + k);
    }
    for (int c = 0; c < CHAINS; c++)
        for (int r = 0; r < R; r++)
            for (int q = 0; q < Q; q++) sums[r][q] += chains[c][r][q];
}

// Calls work(first, constant<R>) for blocks of 8, 4, 2 and 1 rows.
template <typename Work>
inline void by_rows(int64_t first, int64_t last, Work work) {
    for (; first + 8 <= last; first += 8) work(first, std::integral_constant<int, 8>{});
    for (; first + 4 <= last; first += 4) work(first, std::integral_constant<int, 4>{});
    for (; first + 2 <= last; first += 2) work(first, std::integral_constant<int, 2>{});
    for (; first < last; first++) work(first, std::integral_constant<int, 1>{});
}

template <typename T>
inline int64_t a_panel_size(const LoraCall &d) {
    return (d.inputs + Panel<T>::STEP - 1) / Panel<T>::STEP * Panel<T>::STEP * LANES;
}

// middle = A x for Q panels of ranks, of whatever parts, kept in the type of x.
template <int Q, typename T>
void shrink(const LoraCall &d, const Task &task, const RankPanel *wanted) {
    const T *panels[Q];
    for (int q = 0; q < Q; q++) panels[q] = static_cast<const T *>(wanted[q].a);
    by_rows(task.first, task.last, [&](int64_t first, auto size) {
        constexpr int R = decltype(size)::value;
        const T *x[R];
        v16 sums[R][Q] = {};
        for (int r = 0; r < R; r++) x[r] = static_cast<const T *>(d.x) + d.rows[first + r] * d.x_stride;
        multiply<R, Q>(x, panels, d.inputs, sums);
        for (int r = 0; r < R; r++)
            for (int q = 0; q < Q; q++)
                store_lanes(reinterpret_cast<T *>(d.middle) + (first + r) * d.middle_stride + wanted[q].column,
                            sums[r][q]);
    });
}

// out += B middle for some panels of a part's outputs.
template <typename T>
void expand(const LoraCall &d, const Task &task, const Matrices &m, int64_t column) {
    const int64_t begin = d.offsets[task.part], size = d.offsets[task.part + 1] - begin;
    const int64_t panels = (size + LANES - 1) / LANES, end = std::min(task.panel + TASK_PANELS, panels);
    const T *middle = reinterpret_cast<const T *>(d.middle) + column;
    by_rows(task.first, task.last, [&](int64_t first, auto count) {
        constexpr int R = decltype(count)::value, STEP = Panel<T>::STEP;
        const T *y[R];
        T *out[R];
        for (int r = 0; r < R; r++) {
            y[r] = middle + (first + r) * d.middle_stride;
            out[r] = static_cast<T *>(d.out) + d.rows[first + r] * d.out_stride + begin;
        }
        for (int64_t number = task.panel; number < end; number++) {
            const T *weights = static_cast<const T *>(m.b) + number * m.rank * LANES;
            const int64_t at = number * LANES, width = std::min<int64_t>(LANES, size - at);
            v16 sums[R];
            for (int r = 0; r < R; r++) {
                if (width == LANES)
                    sums[r] = load16(out[r] + at);
                else
                    for (int i = 0; i < LANES; i++) sums[r][i] = i < width ? load(out[r][at + i]) : 0.0f;
            }
            Panel<T> panel;
            for (int64_t k = 0; k < m.rank; k += STEP) {
                panel.read(weights + k * LANES);
                for (int r = 0; r < R; r++) sums[r] = panel.add(sums[r], y[r] + k);
            }
            for (int r = 0; r < R; r++) {
                if (width == LANES)
                    store_lanes(out[r] + at, sums[r]);
                else
                    for (int i = 0; i < width; i++) store(out[r][at + i], sums[r][i]);
            }
        }
    });
}

template <typename T>
void lora(const LoraCall &d, int threads) {
    std::vector<Task> shrinks, expands;
    std::vector<Block> blocks;
    std::vector<RankPanel> panels;
    std::vector<int64_t> columns(d.groups * d.parts);  // where a part's numbers begin in a row of `middle`
    for (int g = 0; g < d.groups; g++) {
        const int64_t first_panel = panels.size();
        for (int p = 0; p < d.parts; p++) {
            const Matrices &m = d.table[d.slots[g] * d.parts + p];
            columns[g * d.parts + p] = (panels.size() - first_panel) * LANES;
            for (int64_t i = 0; i < m.rank / LANES; i++)
                panels.push_back({static_cast<const T *>(m.a) + i * a_panel_size<T>(d),
                                  int64_t(panels.size() - first_panel) * LANES});
        }
        const int64_t end_panel = panels.size();
        for (int64_t first = d.starts[g]; first < d.starts[g + 1]; first += TASK_ROWS) {
            const int64_t last = std::min<int64_t>(first + TASK_ROWS, d.starts[g + 1]);
            Block block{int64_t(shrinks.size()), 0, int64_t(expands.size()), 0};
            for (int64_t panel = first_panel; panel < end_panel; panel += TOGETHER)
                shrinks.push_back({g, 0, first, last, panel, int(std::min<int64_t>(TOGETHER, end_panel - panel))});
            for (int p = 0; p < d.parts; p++) {
                if (d.table[d.slots[g] * d.parts + p].rank == 0) continue;
                const int64_t count = (d.offsets[p + 1] - d.offsets[p] + LANES - 1) / LANES;
                for (int64_t panel = 0; panel < count; panel += TASK_PANELS)
                    expands.push_back({g, p, first, last, panel, 0});
            }
            block.shrink_end = shrinks.size();
            block.expand_end = expands.size();
            blocks.push_back(block);
        }
    }
    auto do_shrink = [&](const Task &t) {
        const RankPanel *wanted = panels.data() + t.panel;
        if (t.count == 3)
            shrink<3, T>(d, t, wanted);
        else if (t.count == 2)
            shrink<2, T>(d, t, wanted);
        else
            shrink<1, T>(d, t, wanted);
    };
    auto do_expand = [&](const Task &t) {
        expand<T>(d, t, d.table[d.slots[t.group] * d.parts + t.part], columns[t.group * d.parts + t.part]);
    };
    const int64_t block_count = blocks.size(), shrink_count = shrinks.size(), expand_count = expands.size();
    if (block_count >= 2 * threads || threads == 1) {
        // Enough blocks of rows for all threads: each block is computed to its end, and nobody waits in between.
#pragma omp parallel for schedule(dynamic) num_threads(threads)
        for (int64_t i = 0; i < block_count; i++) {
            const Block &b = blocks[i];
            for (int64_t t = b.shrink; t < b.shrink_end; t++) do_shrink(shrinks[t]);
            for (int64_t t = b.expand; t < b.expand_end; t++) do_expand(expands[t]);
        }
        return;
    }
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < shrink_count; i++) do_shrink(shrinks[i]);
#pragma omp for schedule(dynamic) nowait
        for (int64_t i = 0; i < expand_count; i++) do_expand(expands[i]);
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
