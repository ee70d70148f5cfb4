// Kernels of the Metal back end, in Metal's shading language. `tests/common/host.h` lets a C++ compiler compile the same
// text, and the tests run it beside the CPU's kernels: so nothing here may need more than that header has. A kernel
// whose last argument is `at` is run once for each place of a grid; one whose arguments end in `row, lane, lanes` is run
// by a threadgroup a row. All numbers are f32 unless a name says otherwise; matrices lie row after row.
#ifndef HEADROOM_HOST
#include <metal_stdlib>
using namespace metal;
#pragma METAL fp contract(off)
#define SHARED(T, name, n) threadgroup T name[n]
#endif

// ---- Copies and sums ----

// A box of numbers: `width` by `height` by `depth`, with the distances between neighbours on both sides.
struct Box {
    uint from_column, from_row, from_plane, to_row, to_plane;
    float scale;
};

kernel void copy(device const float* from, device float* to, constant Box& box, uint3 at [[thread_position_in_grid]]) {
    to[at.z * box.to_plane + at.y * box.to_row + at.x] =
        from[at.z * box.from_plane + at.y * box.from_row + at.x * box.from_column];
}

// to += scale * from
kernel void accumulate(device const float* from, device float* to, constant Box& box,
                       uint3 at [[thread_position_in_grid]]) {
    to[at.z * box.to_plane + at.y * box.to_row + at.x] +=
        box.scale * from[at.z * box.from_plane + at.y * box.from_row + at.x * box.from_column];
}

struct LowRank {
    uint rows, width, rank, across, down;
    float scale;
};

// y += scale * h b, where b has few rows: b[k][c] is b[k * down + c * across]. A thread makes four rows of four columns,
// which lie a quarter of the width apart, so that neighbours read and write neighbours.
kernel void low_rank(device float* y, device const float* h, device const float* b, constant LowRank& l,
                     uint3 at [[thread_position_in_grid]]) {
    uint quarter = (l.width + 3) / 4, first = 4 * at.y;
    uint rows = l.rows - first < 4 ? l.rows - first : 4;
    float sums[4][4] = {{0.0f}, {0.0f}, {0.0f}, {0.0f}};
    for (uint k = 0; k < l.rank; k++) {
        float column[4];
        for (uint j = 0; j < 4; j++) {
            uint c = at.x + j * quarter;
            column[j] = c < l.width ? b[k * l.down + c * l.across] : 0.0f;
        }
        for (uint i = 0; i < rows; i++) {
            float x = h[(first + i) * l.rank + k];
            for (uint j = 0; j < 4; j++) sums[i][j] += x * column[j];
        }
    }
    for (uint i = 0; i < rows; i++) {
        for (uint j = 0; j < 4; j++) {
            uint c = at.x + j * quarter;
            if (c < l.width) y[(first + i) * l.width + c] += l.scale * sums[i][j];
        }
    }
}

struct Row {
    uint width;
    float value;
};

// to = a + b
kernel void sum(device const float* a, device const float* b, device float* to, constant Row& row,
                uint3 at [[thread_position_in_grid]]) {
    to[at.y * row.width + at.x] = a[at.y * row.width + at.x] + b[at.y * row.width + at.x];
}

kernel void fill(device float* to, constant Row& row, uint3 at [[thread_position_in_grid]]) {
    to[at.y * row.width + at.x] = row.value;
}

kernel void scale(device float* x, constant Row& row, uint3 at [[thread_position_in_grid]]) {
    x[at.y * row.width + at.x] *= row.value;
}

// Row r of `to` is row ids[r] of `from`.
kernel void gather(device const float* from, device const uint* ids, device float* to, constant Row& row,
                   uint3 at [[thread_position_in_grid]]) {
    to[at.y * row.width + at.x] = from[ids[at.y] * row.width + at.x];
}

// Row ids[r] of `to` is row r of `from`.
kernel void scatter(device const float* from, device const uint* ids, device float* to, constant Row& row,
                    uint3 at [[thread_position_in_grid]]) {
    to[ids[at.y] * row.width + at.x] = from[at.y * row.width + at.x];
}

// Column j of y times factor[j].
kernel void scale_columns(device float* y, device const float* factor, constant Row& row,
                          uint3 at [[thread_position_in_grid]]) {
    y[at.y * row.width + at.x] *= factor[at.x];
}

kernel void quotient(device const float* a, device const float* b, device float* to, constant Row& row,
                   uint3 at [[thread_position_in_grid]]) {
    to[at.y * row.width + at.x] = a[at.y * row.width + at.x] / b[at.y * row.width + at.x];
}

struct Matrix {
    uint rows, width;
};

// Sum over the rows of a * b, a number a column.
kernel void column_dots(device const float* a, device const float* b, device float* to, constant Matrix& m,
                        uint3 at [[thread_position_in_grid]]) {
    float total = 0.0f;
    for (uint r = 0; r < m.rows; r++) total += a[r * m.width + at.x] * b[r * m.width + at.x];
    to[at.x] = total;
}

// Sum of a * b along each row.
kernel void row_dots(device const float* a, device const float* b, device float* to, constant Matrix& m,
                     uint3 at [[thread_position_in_grid]]) {
    float total = 0.0f;
    for (uint c = 0; c < m.width; c++) total += a[at.x * m.width + c] * b[at.x * m.width + c];
    to[at.x] = total;
}

// The root of squares + moved, in the place of `moved`; a sum below `smallest` counts as that.
kernel void lengths(device const float* squares, device float* moved, constant Row& row,
                    uint3 at [[thread_position_in_grid]]) {
    moved[at.x] = sqrt(max(squares[at.x] + moved[at.x], row.value));
}

// ---- Sums over a threadgroup of whole SIMD groups ----

static float group_sum(float x, threadgroup float* parts, uint lane, uint lanes) {
    x = simd_sum(x);
    if (lanes <= 32) return x;
    if (lane % 32 == 0) parts[lane / 32] = x;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float total = 0.0f;
    for (uint i = 0; i < lanes / 32; i++) total += parts[i];
    // Before anybody writes to the parts again.
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return total;
}

static float group_max(float x, threadgroup float* parts, uint lane, uint lanes) {
    x = simd_max(x);
    if (lanes <= 32) return x;
    if (lane % 32 == 0) parts[lane / 32] = x;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float largest = parts[0];
    for (uint i = 1; i < lanes / 32; i++) largest = max(largest, parts[i]);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return largest;
}

// ---- Norms ----

struct Norm {
    uint width;
    float eps;
};

kernel void rms_norm(device const float* x, device const float* w, device float* y, constant Norm& norm,
                     uint row [[threadgroup_position_in_grid]], uint lane [[thread_index_in_threadgroup]],
                     uint lanes [[threads_per_threadgroup]]) {
    SHARED(float, parts, 32);
    x += row * norm.width;
    y += row * norm.width;
    float squares = 0.0f;
    for (uint i = lane; i < norm.width; i += lanes) squares += x[i] * x[i];
    float inverse = 1.0f / sqrt(group_sum(squares, parts, lane, lanes) / float(norm.width) + norm.eps);
    for (uint i = lane; i < norm.width; i += lanes) y[i] = x[i] * inverse * w[i];
}

// dx = (g w - x_hat mean(g w x_hat)) / rms
kernel void rms_norm_back(device const float* x, device const float* w, device const float* g, device float* dx,
                          constant Norm& norm, uint row [[threadgroup_position_in_grid]],
                          uint lane [[thread_index_in_threadgroup]], uint lanes [[threads_per_threadgroup]]) {
    SHARED(float, parts, 32);
    x += row * norm.width;
    g += row * norm.width;
    dx += row * norm.width;
    float squares = 0.0f, along = 0.0f;
    for (uint i = lane; i < norm.width; i += lanes) {
        squares += x[i] * x[i];
        along += g[i] * w[i] * x[i];
    }
    float inverse = 1.0f / sqrt(group_sum(squares, parts, lane, lanes) / float(norm.width) + norm.eps);
    float dot = group_sum(along, parts, lane, lanes) * inverse * inverse / float(norm.width);
    for (uint i = lane; i < norm.width; i += lanes) dx[i] = (g[i] * w[i] - x[i] * dot) * inverse;
}

kernel void layer_norm(device const float* x, device const float* w, device const float* b, device float* y,
                       constant Norm& norm, uint row [[threadgroup_position_in_grid]],
                       uint lane [[thread_index_in_threadgroup]], uint lanes [[threads_per_threadgroup]]) {
    SHARED(float, parts, 32);
    x += row * norm.width;
    y += row * norm.width;
    float n = float(norm.width), total = 0.0f, squares = 0.0f;
    for (uint i = lane; i < norm.width; i += lanes) total += x[i];
    float mean = group_sum(total, parts, lane, lanes) / n;
    for (uint i = lane; i < norm.width; i += lanes) squares += (x[i] - mean) * (x[i] - mean);
    float inverse = 1.0f / sqrt(group_sum(squares, parts, lane, lanes) / n + norm.eps);
    for (uint i = lane; i < norm.width; i += lanes) y[i] = (x[i] - mean) * inverse * w[i] + b[i];
}

// dx = (gw - mean(gw) - x_hat mean(gw x_hat)) / std, with gw = g w
kernel void layer_norm_back(device const float* x, device const float* w, device const float* g, device float* dx,
                            constant Norm& norm, uint row [[threadgroup_position_in_grid]],
                            uint lane [[thread_index_in_threadgroup]], uint lanes [[threads_per_threadgroup]]) {
    SHARED(float, parts, 32);
    x += row * norm.width;
    g += row * norm.width;
    dx += row * norm.width;
    float n = float(norm.width), total = 0.0f, squares = 0.0f, first = 0.0f, second = 0.0f;
    for (uint i = lane; i < norm.width; i += lanes) total += x[i];
    float mean = group_sum(total, parts, lane, lanes) / n;
    for (uint i = lane; i < norm.width; i += lanes) {
        squares += (x[i] - mean) * (x[i] - mean);
        first += g[i] * w[i];
        second += g[i] * w[i] * (x[i] - mean);
    }
    float inverse = 1.0f / sqrt(group_sum(squares, parts, lane, lanes) / n + norm.eps);
    first = group_sum(first, parts, lane, lanes) / n;
    second = group_sum(second, parts, lane, lanes) * inverse / n;
    for (uint i = lane; i < norm.width; i += lanes) {
        dx[i] = (g[i] * w[i] - first - (x[i] - mean) * inverse * second) * inverse;
    }
}

// ---- Activations: 0 is SiLU, 1 GELU by its tanh approximation, 2 GELU ----

struct Activation {
    uint width, kind;
};

// N. Juffa's approximation, to one unit in the last place.
static float error_function(float a) {
    float t = fabs(a), s = a * a, r;
    if (t > 0.927734375f) {
        r = fma(-1.72853470e-5f, t, 3.83197126e-4f);
        float u = fma(-3.88396438e-3f, t, 2.42546219e-2f);
        r = fma(r, s, u);
        r = fma(r, t, -1.06777877e-1f);
        r = fma(r, t, -6.34846687e-1f);
        r = fma(r, t, -1.28717512e-1f);
        r = fma(r, t, -t);
        return copysign(1.0f - exp(r), a);
    }
    r = -5.96761703e-4f;
    r = fma(r, s, 4.99119423e-3f);
    r = fma(r, s, -2.67681349e-2f);
    r = fma(r, s, 1.12819925e-1f);
    r = fma(r, s, -3.76125336e-1f);
    r = fma(r, s, 1.28379166e-1f);
    return fma(r, a, a);
}

// No infinity on the way: fast arithmetic makes nothing sensible of one.
static float sigmoid(float x) {
    return 1.0f / (1.0f + exp(-max(x, -80.0f)));
}

// Value and slope.
static float2 activated(uint kind, float x) {
    if (kind == 0) {
        float s = sigmoid(x);
        return float2(x * s, s * (1.0f + x * (1.0f - s)));
    }
    if (kind == 1) {
        const float c = 0.7978845608f, a = 0.044715f; // sqrt(2 / pi)
        float s = sigmoid(2.0f * c * (x + a * x * x * x));
        return float2(x * s, s * (1.0f + 2.0f * x * (1.0f - s) * c * (1.0f + 3.0f * a * x * x)));
    }
    float cdf = 0.5f * (1.0f + error_function(x * 0.70710678118f));
    float pdf = exp(-0.5f * x * x) * 0.3989422804f; // 1 / sqrt(2 pi)
    return float2(x * cdf, cdf + x * pdf);
}

kernel void act(device const float* x, device float* y, constant Activation& a,
                uint3 at [[thread_position_in_grid]]) {
    uint i = at.y * a.width + at.x;
    y[i] = activated(a.kind, x[i]).x;
}

// g becomes act'(x) g.
kernel void act_back(device const float* x, device float* g, constant Activation& a,
                     uint3 at [[thread_position_in_grid]]) {
    uint i = at.y * a.width + at.x;
    g[i] *= activated(a.kind, x[i]).y;
}

kernel void gated(device const float* gate, device const float* up, device float* y, constant Activation& a,
                  uint3 at [[thread_position_in_grid]]) {
    uint i = at.y * a.width + at.x;
    y[i] = activated(a.kind, gate[i]).x * up[i];
}

// `up` becomes its own gradient, and g that of the gate.
kernel void gated_back(device const float* gate, device float* up, device float* g, constant Activation& a,
                       uint3 at [[thread_position_in_grid]]) {
    uint i = at.y * a.width + at.x;
    float2 both = activated(a.kind, gate[i]);
    float through = g[i] * up[i] * both.y;
    up[i] = g[i] * both.x;
    g[i] = through;
}

// ---- Rotary position embedding, in place: a thread a pair ----

struct Rope {
    uint width, head_dim, half_dim;
    float sign;
};

kernel void rope(device float* x, device const float* cosines, device const float* sines,
                 device const uint* positions, constant Rope& r, uint3 at [[thread_position_in_grid]]) {
    uint head = at.x / r.half_dim, i = at.x % r.half_dim;
    device float* pair = x + at.y * r.width + head * r.head_dim + i;
    float c = cosines[positions[at.y] * r.half_dim + i], s = sines[positions[at.y] * r.half_dim + i] * r.sign;
    float a = pair[0], b = pair[r.half_dim];
    pair[0] = a * c - b * s;
    pair[r.half_dim] = b * c + a * s;
}

// ---- Attention's softmax, a threadgroup a row of scores ----

struct Scores {
    uint keys, queries, first_query, first_key, window;
    float scale, cap;
};

// Scores become probabilities. Query `first_query + row % queries` sees the keys up to itself and within the window.
// With a cap the cap's slope goes to `slope`.
kernel void softmax(device float* scores, device float* slope, constant Scores& s,
                    uint row [[threadgroup_position_in_grid]], uint lane [[thread_index_in_threadgroup]],
                    uint lanes [[threads_per_threadgroup]]) {
    SHARED(float, parts, 32);
    scores += row * s.keys;
    slope += row * s.keys;
    uint query = s.first_query + row % s.queries;
    uint to = query + 1 - s.first_key;
    uint from = query + 1 > s.window ? max(query + 1 - s.window, s.first_key) - s.first_key : 0;
    // A thread's own largest and its sum beside it, which move with each other: one pass for both.
    float largest = -3.0e38f, total = 0.0f;
    for (uint i = from + lane; i < to; i += lanes) {
        float x = scores[i] * s.scale;
        if (s.cap > 0.0f) x = s.cap * tanh(x / s.cap);
        if (x > largest) {
            total = total * exp(largest - x) + 1.0f;
            largest = x;
        } else {
            total += exp(x - largest);
        }
    }
    float most = group_max(largest, parts, lane, lanes);
    float inverse = 1.0f / group_sum(total * exp(largest - most), parts, lane, lanes);
    for (uint i = lane; i < s.keys; i += lanes) {
        if (i < from || i >= to) {
            scores[i] = 0.0f;
            if (s.cap > 0.0f) slope[i] = 0.0f;
            continue;
        }
        float x = scores[i] * s.scale;
        if (s.cap > 0.0f) {
            float t = tanh(x / s.cap);
            slope[i] = 1.0f - t * t;
            x = s.cap * t;
        }
        scores[i] = exp(x - most) * inverse;
    }
}

// g becomes the gradient of the scores before cap and scale: scale slope p (g - sum(g p)).
kernel void softmax_back(device const float* p, device const float* slope, device float* g, constant Scores& s,
                         uint row [[threadgroup_position_in_grid]], uint lane [[thread_index_in_threadgroup]],
                         uint lanes [[threads_per_threadgroup]]) {
    SHARED(float, parts, 32);
    p += row * s.keys;
    slope += row * s.keys;
    g += row * s.keys;
    float along = 0.0f;
    for (uint i = lane; i < s.keys; i += lanes) along += g[i] * p[i];
    along = group_sum(along, parts, lane, lanes);
    for (uint i = lane; i < s.keys; i += lanes) {
        float d = p[i] * (g[i] - along) * s.scale;
        g[i] = s.cap > 0.0f ? d * slope[i] : d;
    }
}

// ---- Cross-entropy: logits become the gradient of their loss times `scale`, and the loss of each row goes to `losses` ----

struct Loss {
    uint vocab, with_gradient;
    float cap, scale;
};

kernel void cross_entropy(device float* logits, device const uint* targets, device float* losses, constant Loss& l,
                          uint row [[threadgroup_position_in_grid]], uint lane [[thread_index_in_threadgroup]],
                          uint lanes [[threads_per_threadgroup]]) {
    SHARED(float, parts, 32);
    logits += row * l.vocab;
    float largest = -3.0e38f, total = 0.0f;
    for (uint i = lane; i < l.vocab; i += lanes) {
        float z = logits[i];
        if (l.cap > 0.0f) {
            z = l.cap * tanh(z / l.cap);
            logits[i] = z;
        }
        largest = max(largest, z);
    }
    largest = group_max(largest, parts, lane, lanes);
    for (uint i = lane; i < l.vocab; i += lanes) total += exp(logits[i] - largest);
    total = group_sum(total, parts, lane, lanes);
    uint target = targets[row];
    if (lane == 0) losses[row] = log(total) + largest - logits[target];
    if (l.with_gradient == 0) return;
    // Before the logit of the target is written over.
    threadgroup_barrier(mem_flags::mem_device);
    float by = l.scale / total;
    for (uint i = lane; i < l.vocab; i += lanes) {
        float z = logits[i], d = exp(z - largest) * by;
        if (i == target) d -= l.scale;
        logits[i] = l.cap > 0.0f ? d * (1.0f - (z / l.cap) * (z / l.cap)) : d;
    }
}

// ---- Dropout, drawn by place: Philox 4x32-10, four numbers a thread ----

struct Dropout {
    uint width, first_row, site, micro_step, seed_low, seed_high, threshold;
    float dropped, kept;
};

kernel void dropout(device const float* x, device float* y, constant Dropout& d,
                    uint3 at [[thread_position_in_grid]]) {
    uint4 counter = uint4(at.x, d.first_row + at.y, d.site, d.micro_step);
    uint2 key = uint2(d.seed_low, d.seed_high);
    for (uint round = 0; round < 10; round++) {
        uint low0 = 0xd2511f53u * counter.x, high0 = mulhi(0xd2511f53u, counter.x);
        uint low1 = 0xcd9e8d57u * counter.z, high1 = mulhi(0xcd9e8d57u, counter.z);
        counter = uint4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
        key = uint2(key.x + 0x9e3779b9u, key.y + 0xbb67ae85u);
    }
    uint drawn[4] = {counter.x, counter.y, counter.z, counter.w};
    for (uint i = 0; i < 4 && 4 * at.x + i < d.width; i++) {
        uint place = at.y * d.width + 4 * at.x + i;
        y[place] = x[place] * (drawn[i] < d.threshold ? d.dropped : d.kept);
    }
}
