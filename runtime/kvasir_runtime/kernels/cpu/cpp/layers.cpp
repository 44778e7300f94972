// All layers of a Llama-shaped bfloat16 model in one call: what Python would call one by one, without the time between,
// in which threads wait. Each layer is norm, attention, norm, gated MLP, with residuals (see models/decoder.py).

#include "vectors.h"

extern "C" {
void kvasir_rms_norm(int, const void *, void *, const float *, void *, int64_t, int64_t, float, int);
void kvasir_linear_bf16(const bf16 *, const char *, const float *, bf16 *, int64_t, int64_t, int64_t, int);
void kvasir_silu_gated_bf16(const bf16 *, const char *, bf16 *, int64_t, int64_t, int64_t, int);
void kvasir_linear_int8(int, const void *, const int8_t *, const float *, const int32_t *, const float *, void *, int64_t, int64_t,
                        int64_t, int);
void kvasir_lora(int, const void *, void *, const int32_t *, const int32_t *, const int32_t *, const void *, const int64_t *, void *,
                 int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int);
void kvasir_silu_and_mul(int, const void *, void *, int64_t, int64_t, int);
void kvasir_write_kv(int, const void *, const void *, const void *, void *, void *, const float *, const int64_t *, const int64_t *,
                     int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int);
void kvasir_attention(int, const void *, const void *, const int32_t *, const int32_t *, const int32_t *, void *, int64_t, int64_t,
                      int64_t, int64_t, int64_t, int64_t, int64_t, float, float, int64_t, int);
}

namespace {

// Every field takes eight bytes, so that Python can write them as an array.

// A step's rows with adapters, as kvasir_lora has them.
struct LoraRows {
    const int32_t *rows, *starts, *slots;
    int64_t groups;
    float *middle;  // room for the widest adapter's ranks of all rows
};

struct Weight {
    const char *panels;
    const float *scales;    // null: bfloat16
    const int32_t *shifts;
    const float *bias;      // or null
    int64_t outputs, inputs;
    const int64_t *slots;    // adapters' matrices and ranks, as kvasir_lora has them; null: none
    const int64_t *offsets;
    int64_t parts;

    void apply(const bf16 *x, bf16 *out, int64_t rows, const LoraRows &lora, int threads) const {
        multiply(x, out, rows, threads);
        if (!slots || !lora.groups) return;
        int64_t width = 0;  // ranks that an adapter of this step has in all parts
        for (int64_t g = 0; g < lora.groups; g++) {
            int64_t ranks = 0;
            for (int64_t p = 0; p < parts; p++) ranks += slots[(lora.slots[g] * parts + p) * 3 + 2];
            width = std::max(width, ranks);
        }
        if (width)
            kvasir_lora(1, x, out, lora.rows, lora.starts, lora.slots, slots, offsets, lora.middle, inputs, outputs, lora.groups,
                        parts, inputs, width, threads);
    }

    void multiply(const bf16 *x, bf16 *out, int64_t rows, int threads) const {
        if (scales) kvasir_linear_int8(1, x, (const int8_t *)panels, scales, shifts, bias, out, rows, outputs, inputs, threads);
        else kvasir_linear_bf16(x, panels, bias, out, rows, outputs, inputs, threads);
    }
};

struct Layer {
    Weight qkv, out, gate_up, down;
    const float *attention_norm, *mlp_norm, *cos_sin;
    int64_t window;  // 0: none
    void *kv;        // [2, B, K, S, C]
};

struct Shape {
    int64_t hidden, inner, heads, kv_heads, head_dim, block_size;
    int64_t gated;  // all layers' gate_up gates by itself
    double eps, scale, softcap;

    // Numbers for each row of what is needed at the same time, in attention and in the MLP.
    int64_t attention_size() const { return (3 * heads + 2 * kv_heads) * head_dim; }
    int64_t mlp_size() const { return (gated ? 1 : 3) * inner; }
};

struct Sequences {
    const int32_t *tables, *lengths, *starts;  // starts: null in decode
    int64_t count, table_width;
};

struct Step {
    int64_t rows, blocks;
    const int64_t *positions, *slots;
    Sequences decodes, prefills;
    LoraRows lora;
};

// Room for the results in between; used again by each layer, and attention's by the MLP.
struct Scratch {
    bf16 *normed, *qkv, *q, *attended, *inner, *both;

    Scratch(bf16 *at, const Shape &s, int64_t rows) {
        normed = at;
        qkv = inner = normed + rows * s.hidden;
        q = qkv + rows * (s.heads + 2 * s.kv_heads) * s.head_dim;
        attended = q + rows * s.heads * s.head_dim;
        both = inner + rows * s.inner;
    }
};

void attend(const Layer &layer, const Shape &s, const Step &step, const Sequences &part, int64_t first, const Scratch &room, int threads) {
    if (part.count == 0) return;
    const int64_t at = first * s.heads * s.head_dim;
    kvasir_attention(1, room.q + at, layer.kv, part.tables, part.lengths, part.starts, room.attended + at, part.count, s.heads,
                     s.kv_heads, s.head_dim, step.blocks, s.block_size, part.table_width, s.scale, s.softcap, layer.window, threads);
}

// `x` becomes the MLP's result, which is not added to the residual yet.
void run(const Layer &layer, const Shape &s, const Step &step, bf16 *x, bf16 *residual, bool first, const Scratch &room, int threads) {
    const int64_t rows = step.rows, stride = (s.heads + 2 * s.kv_heads) * s.head_dim;
    if (first) {
        std::memcpy(residual, x, rows * s.hidden * sizeof(bf16));
        kvasir_rms_norm(1, x, nullptr, layer.attention_norm, room.normed, rows, s.hidden, s.eps, threads);
    } else {
        kvasir_rms_norm(1, x, residual, layer.attention_norm, room.normed, rows, s.hidden, s.eps, threads);
    }
    layer.qkv.apply(room.normed, room.qkv, rows, step.lora, threads);
    const bf16 *k = room.qkv + s.heads * s.head_dim, *v = k + s.kv_heads * s.head_dim;
    kvasir_write_kv(1, room.qkv, k, v, room.q, layer.kv, layer.cos_sin, step.positions, step.slots, rows, s.heads, s.kv_heads,
                    s.head_dim, step.blocks, s.block_size, stride, stride, stride, threads);
    attend(layer, s, step, step.decodes, 0, room, threads);
    attend(layer, s, step, step.prefills, step.decodes.count, room, threads);
    layer.out.apply(room.attended, x, rows, step.lora, threads);
    kvasir_rms_norm(1, x, residual, layer.mlp_norm, room.normed, rows, s.hidden, s.eps, threads);
    if (s.gated) {
        kvasir_silu_gated_bf16(room.normed, layer.gate_up.panels, room.inner, rows, s.inner, s.hidden, threads);
    } else {
        layer.gate_up.apply(room.normed, room.both, rows, step.lora, threads);
        kvasir_silu_and_mul(1, room.both, room.inner, rows, s.inner, threads);
    }
    layer.down.apply(room.inner, x, rows, step.lora, threads);
}

}  // namespace

extern "C" {

// Numbers (bfloat16) that `scratch` must have room for, for each row.
int64_t kvasir_layers_scratch(const Shape *s) {
    return s->hidden + std::max(s->attention_size(), s->mlp_size());
}

// `x` [rows, hidden] holds the embeddings, then the last layer's result; `residual`, of the same shape, what it is to be added to.
void kvasir_layers(const Layer *layers, int64_t count, const Shape *shape, const Step *step, bf16 *x, bf16 *residual, bf16 *scratch,
                   int threads) {
    const Scratch room(scratch, *shape, step->rows);
    for (int64_t i = 0; i < count; i++) run(layers[i], *shape, *step, x, residual, i == 0, room, threads);
}
}
