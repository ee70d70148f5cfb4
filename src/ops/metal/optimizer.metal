// ---- The norm of gradients, and the update rules ----

struct Parts {
    uint n, parts;
};

// Part i is the sum of the squares of every parts-th number from i on.
kernel void squares(device const float* x, device float* to, constant Parts& p, uint3 at [[thread_position_in_grid]]) {
    float total = 0.0f;
    for (uint i = at.x; i < p.n; i += p.parts) total += x[i] * x[i];
    to[at.x] = total;
}

struct Adam {
    float factor, beta1, beta2, rate, root_bias2, eps, decay;
};

// torch.optim.AdamW, with the gradient times `factor`.
kernel void adamw(device float* p, device const float* g, device float* m, device float* v, constant Adam& a,
                  uint3 at [[thread_position_in_grid]]) {
    float x = g[at.x] * a.factor;
    float mean = m[at.x] * a.beta1 + x * (1.0f - a.beta1);
    float square = v[at.x] * a.beta2 + x * x * (1.0f - a.beta2);
    m[at.x] = mean;
    v[at.x] = square;
    p[at.x] = p[at.x] * a.decay - a.rate * mean / (sqrt(square) / a.root_bias2 + a.eps);
}

struct Adam8 {
    uint n;
    float factor, beta1, beta2, rate, root_bias2, eps, decay;
};

// The code whose entry is nearest: the number of middles below x.
static uchar nearest(device const float* middles, float x) {
    uint low = 0, high = 255;
    while (low < high) {
        uint middle = (low + high) / 2;
        if (middles[middle] < x) low = middle + 1; else high = middle;
    }
    return uchar(low);
}

// AdamW with moments in eight bits: a threadgroup of 256 a block. `books` holds the 256 entries and 255 middles of the
// book with a sign, and then those of the book without.
kernel void adamw_8bit(device float* p, device const float* g, device uchar* m, device float* m_largest,
                       device uchar* v, device float* v_largest, device const float* books, constant Adam8& a,
                       uint row [[threadgroup_position_in_grid]], uint lane [[thread_index_in_threadgroup]],
                       uint lanes [[threads_per_threadgroup]]) {
    SHARED(float, parts, 32);
    uint i = row * 256 + lane;
    bool there = i < a.n;
    float mean = 0.0f, square = 0.0f;
    if (there) {
        float x = g[i] * a.factor;
        mean = books[m[i]] * m_largest[row] * a.beta1 + x * (1.0f - a.beta1);
        square = books[511 + v[i]] * v_largest[row] * a.beta2 + x * x * (1.0f - a.beta2);
        p[i] = p[i] * a.decay - a.rate * mean / (sqrt(square) / a.root_bias2 + a.eps);
    }
    float largest_mean = group_max(fabs(mean), parts, lane, lanes);
    float largest_square = group_max(square, parts, lane, lanes);
    if (there) {
        m[i] = nearest(books + 256, mean * (largest_mean > 0.0f ? 1.0f / largest_mean : 0.0f));
        v[i] = nearest(books + 767, square * (largest_square > 0.0f ? 1.0f / largest_square : 0.0f));
    }
    if (lane == 0) {
        m_largest[row] = largest_mean;
        v_largest[row] = largest_square;
    }
}

struct Factors {
    uint rows, width;
    float factor, share;
};

constant float SMALLEST = 1e-30f;

// The mean over each row of the squared gradients, mixed into what was remembered.
kernel void factor_rows(device const float* g, device float* rows, constant Factors& f,
                        uint row [[threadgroup_position_in_grid]], uint lane [[thread_index_in_threadgroup]],
                        uint lanes [[threads_per_threadgroup]]) {
    SHARED(float, parts, 32);
    float total = 0.0f;
    for (uint i = lane; i < f.width; i += lanes) {
        float x = g[row * f.width + i] * f.factor;
        total += x * x + SMALLEST;
    }
    total = group_sum(total, parts, lane, lanes);
    if (lane == 0) rows[row] = rows[row] * (1.0f - f.share) + total / float(f.width) * f.share;
}

// The same over each column.
kernel void factor_columns(device const float* g, device float* columns, constant Factors& f,
                           uint3 at [[thread_position_in_grid]]) {
    float total = 0.0f;
    for (uint r = 0; r < f.rows; r++) {
        float x = g[r * f.width + at.x] * f.factor;
        total += x * x + SMALLEST;
    }
    columns[at.x] = columns[at.x] * (1.0f - f.share) + total / float(f.rows) * f.share;
}

// The mean of the rows' means, by one threadgroup.
kernel void factor_mean(device const float* rows, device float* mean, constant Parts& p,
                        uint row [[threadgroup_position_in_grid]], uint lane [[thread_index_in_threadgroup]],
                        uint lanes [[threads_per_threadgroup]]) {
    SHARED(float, parts, 32);
    float total = 0.0f;
    for (uint i = lane; i < p.n; i += lanes) total += rows[i];
    total = group_sum(total, parts, lane, lanes);
    if (lane == 0) mean[row] = total / float(p.n);
}

// The update before clip and learning rate.
kernel void factored(device const float* g, device const float* rows, device const float* columns,
                     device const float* mean, device float* update, constant Factors& f,
                     uint3 at [[thread_position_in_grid]]) {
    uint i = at.y * f.width + at.x;
    update[i] = g[i] * f.factor * (1.0f / sqrt(rows[at.y] / mean[0])) * (1.0f / sqrt(columns[at.x]));
}

// The same of a vector, whose squares are remembered one by one.
kernel void factored_vector(device const float* g, device float* squares, device float* update, constant Factors& f,
                            uint3 at [[thread_position_in_grid]]) {
    float x = g[at.x] * f.factor;
    float mixed = squares[at.x] * (1.0f - f.share) + (x * x + SMALLEST) * f.share;
    squares[at.x] = mixed;
    update[at.x] = x * (1.0f / sqrt(mixed));
}

// What an update is divided by so that its root mean square is at most 1, from the parts of its squares: one threadgroup.
kernel void update_clip(device const float* squares, device float* clip, constant Parts& p,
                        uint row [[threadgroup_position_in_grid]], uint lane [[thread_index_in_threadgroup]],
                        uint lanes [[threads_per_threadgroup]]) {
    SHARED(float, parts, 32);
    float total = 0.0f;
    for (uint i = lane; i < p.parts; i += lanes) total += squares[i];
    total = group_sum(total, parts, lane, lanes);
    if (lane == 0) clip[row] = max(sqrt(total / float(p.n)), 1.0f);
}

struct Descent {
    float rate, decay;
};

kernel void descend(device float* p, device const float* update, device const float* clip, constant Descent& d,
                    uint3 at [[thread_position_in_grid]]) {
    p[at.x] = p[at.x] * d.decay - update[at.x] / clip[0] * d.rate;
}
