// ---- Frozen matrices: rows of a storage format to f32, a thread a number ----

// Row r of the result is row first + r of the matrix, or row ids[r].
struct Stored {
    uint width, first, by_ids, kind, bits, group;
};

static uint row_of(device const uint* ids, constant Stored& s, uint r) {
    return s.by_ids != 0 ? ids[r] : s.first + r;
}

// Of 16 bits: kind 0 is half precision, 1 bfloat.
static float wide(ushort bits, uint kind) {
    return kind == 0 ? float(as_type<half>(bits)) : as_type<float>(uint(bits) << 16);
}

kernel void widen(device const ushort* from, device const uint* ids, device float* to, constant Stored& s,
                  uint3 at [[thread_position_in_grid]]) {
    to[at.y * s.width + at.x] = wide(from[row_of(ids, s, at.y) * s.width + at.x], s.kind);
}

kernel void int8_rows(device const uchar* codes, device const float* scales, device const uint* ids, device float* to,
                      constant Stored& s, uint3 at [[thread_position_in_grid]]) {
    uint row = row_of(ids, s, at.y), groups = (s.width + s.group - 1) / s.group;
    to[at.y * s.width + at.x] =
        (float(codes[row * s.width + at.x]) - 128.0f) * scales[row * groups + at.x / s.group];
}

// MLX's codes of 2 to 8 bits. Scales and biases are of kind 0 or 1 as above, or f32 (kind 2).
kernel void affine_rows(device const uchar* codes, device const ushort* scales, device const ushort* biases,
                        device const uint* ids, device float* to, constant Stored& s,
                        uint3 at [[thread_position_in_grid]]) {
    uint row = row_of(ids, s, at.y), bit = at.x * s.bits;
    device const uchar* from = codes + row * (s.width * s.bits / 8) + bit / 8;
    uint word = from[0], shift = bit % 8;
    // A code has at most eight bits, so it ends in the byte after at the latest.
    if (shift + s.bits > 8) word |= uint(from[1]) << 8;
    float code = float((word >> shift) & ((1u << s.bits) - 1u));
    uint group = row * (s.width / s.group) + at.x / s.group;
    float scale, bias;
    if (s.kind == 2) {
        scale = ((device const float*)scales)[group];
        bias = ((device const float*)biases)[group];
    } else {
        scale = wide(scales[group], s.kind);
        bias = wide(biases[group], s.kind);
    }
    to[at.y * s.width + at.x] = code * scale + bias;
}

// GGUF's blocks, by their bytes, because their numbers are not aligned. Each function gives number i of a block.

static float half_at(device const uchar* b) {
    return wide(ushort(b[0] | (uint(b[1]) << 8)), 0);
}

static float q8_0(device const uchar* b, uint i) {
    return float(as_type<char>(b[2 + i])) * half_at(b);
}

// The low nibbles of 16 bytes are the numbers 0 to 15, the high ones 16 to 31.
static int nibble(device const uchar* b, uint i) {
    return i < 16 ? b[i] & 15 : b[i - 16] >> 4;
}

static float q4_0(device const uchar* b, uint i) {
    return float(nibble(b + 2, i) - 8) * half_at(b);
}

static float q4_1(device const uchar* b, uint i) {
    return float(nibble(b + 4, i)) * half_at(b) + half_at(b + 2);
}

static int fifth(device const uchar* b, uint i) {
    return ((b[i / 8] >> (i % 8)) & 1) << 4;
}

static float q5_0(device const uchar* b, uint i) {
    return float((nibble(b + 6, i) | fifth(b + 2, i)) - 16) * half_at(b);
}

static float q5_1(device const uchar* b, uint i) {
    return float(nibble(b + 8, i) | fifth(b + 4, i)) * half_at(b) + half_at(b + 2);
}

static float q2_k(device const uchar* b, uint i) {
    uint n = i / 128, j = i % 128 / 32, q = i % 32;
    uint scale = b[8 * n + 2 * j + q / 16], code = (b[16 + 32 * n + q] >> (2 * j)) & 3;
    return half_at(b + 80) * float(scale & 15) * float(code) - half_at(b + 82) * float(scale >> 4);
}

static float q3_k(device const uchar* b, uint i) {
    uint n = i / 128, j = i % 128 / 32, q = i % 32, s = 8 * n + 2 * j + q / 16;
    device const uchar* scales = b + 96;
    int low = s < 8 ? scales[s] & 15 : scales[s - 8] >> 4;
    int high = (scales[8 + s % 4] >> (2 * (s / 4))) & 3;
    int code = (b[32 + 32 * n + q] >> (2 * j)) & 3;
    if (((b[q] >> (4 * n + j)) & 1) == 0) code -= 4;
    return half_at(b + 108) * float((low | (high << 4)) - 32) * float(code);
}

// Scale and minimum of sub-block s of Q4_K and Q5_K, six bits each.
static uint2 six_bits(device const uchar* b, uint s) {
    if (s < 4) return uint2(b[s] & 63, b[s + 4] & 63);
    return uint2((b[s + 4] & 15) | ((b[s - 4] >> 6) << 4), (b[s + 4] >> 4) | ((b[s] >> 6) << 4));
}

static float q4_k(device const uchar* b, uint i) {
    uint j = i / 64, r = i % 64, s = i / 32;
    uint2 by = six_bits(b + 4, s);
    uint code = r < 32 ? b[16 + 32 * j + r] & 15 : b[16 + 32 * j + r - 32] >> 4;
    return half_at(b) * float(by.x) * float(code) - half_at(b + 2) * float(by.y);
}

static float q5_k(device const uchar* b, uint i) {
    uint j = i / 64, r = i % 64, s = i / 32;
    uint2 by = six_bits(b + 4, s);
    uint code = r < 32 ? b[48 + 32 * j + r] & 15 : b[48 + 32 * j + r - 32] >> 4;
    code |= ((b[16 + r % 32] >> s) & 1) << 4;
    return half_at(b) * float(by.x) * float(code) - half_at(b + 2) * float(by.y);
}

static float q6_k(device const uchar* b, uint i) {
    uint n = i / 128, k = i % 128 / 32, q = i % 32;
    uint low = b[64 * n + 32 * (k & 1) + q];
    low = k < 2 ? low & 15 : low >> 4;
    uint high = (b[128 + 32 * n + q] >> (2 * k)) & 3;
    float scale = float(as_type<char>(b[192 + 8 * n + 2 * k + q / 16]));
    return half_at(b + 208) * scale * float(int(low | (high << 4)) - 32);
}

#define BLOCKS(name, number, size, bytes)                                                                              \
    kernel void name(device const uchar* blocks, device const uint* ids, device float* to, constant Stored& s,         \
                     uint3 at [[thread_position_in_grid]]) {                                                           \
        uint block = row_of(ids, s, at.y) * (s.width / size) + at.x / size;                                            \
        to[at.y * s.width + at.x] = number(blocks + block * bytes, at.x % size);                                       \
    }

BLOCKS(q8_0_rows, q8_0, 32, 34)
BLOCKS(q4_0_rows, q4_0, 32, 18)
BLOCKS(q4_1_rows, q4_1, 32, 20)
BLOCKS(q5_0_rows, q5_0, 32, 22)
BLOCKS(q5_1_rows, q5_1, 32, 24)
BLOCKS(q2_k_rows, q2_k, 256, 84)
BLOCKS(q3_k_rows, q3_k, 256, 110)
BLOCKS(q4_k_rows, q4_k, 256, 144)
BLOCKS(q5_k_rows, q5_k, 256, 176)
BLOCKS(q6_k_rows, q6_k, 256, 210)
