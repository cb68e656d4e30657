// Resizes many pictures of 8-bit RGB at once, in the fixed-point arithmetic of Pillow: see resample.py.
//
// One `Pass` resamples one side of one picture; a launch does the passes of many. A pass along the rows reads each row
// bit by bit into shared memory, since neighbouring pixels of the result are made of ranges that overlap and lie far
// apart; one along the columns reads whole rows, which lie together already.

typedef unsigned char byte;

const int PRECISION_BITS = 22;
const int CHANNELS = 3;
// Of one block of threads: pixels of the result that it makes, in each of so many rows, and what it stages at once.
const int ACROSS = 32, DOWN = 4, STAGED = 512;

struct Pass {
    const byte *source;     // pixel (0, 0), RGB
    byte *target;           // likewise
    const int *first;       // of each of `size` pixels: the first that it is made of
    const int *count;       // how many
    const int *weights;     // weight k of pixel i at k * size + i
    long long source_pitch; // bytes from row to row
    long long target_pitch;
    int size;               // pixels of the result along the side that is resampled
    int lines;              // rows, or bytes of a row, of the side that is not
    int orientation;        // 1 to 8: how the result is turned on its way out, which only a square one can be
    int unused;
};

// Where pixel (x, y) of a square picture as stored goes when it is turned upright (EXIF 2.32, tag 274).
__device__ long long place(const Pass &pass, int x, int y)
{
    const int last = pass.size - 1;
    const bool swapped = pass.orientation >= 5;
    int column = swapped ? y : x;
    int row = swapped ? x : y;
    const int turned = pass.orientation;
    if (turned == 2 || turned == 3 || turned == 6 || turned == 7)
        column = last - column;
    if (turned == 3 || turned == 4 || turned == 7 || turned == 8)
        row = last - row;
    return row * pass.target_pitch + (long long)column * CHANNELS;
}

__device__ byte rounded(int sum)
{
    const int value = sum >> PRECISION_BITS;
    return (byte)(value < 0 ? 0 : value > 255 ? 255 : value);
}

// grid: (size / ACROSS, most lines / DOWN, passes), both rounded up; block: (ACROSS, DOWN)
extern "C" __global__ void along_rows(const Pass *passes)
{
    __shared__ byte staged[DOWN][STAGED * CHANNELS];
    const Pass pass = passes[blockIdx.z];
    const int x = blockIdx.x * ACROSS + threadIdx.x;
    const int y = blockIdx.y * DOWN + threadIdx.y;
    if ((int)(blockIdx.x * ACROSS) >= pass.size || (int)(blockIdx.y * DOWN) >= pass.lines)
        return; // the whole block, so that none of its threads waits for another
    const bool mine = x < pass.size && y < pass.lines;
    const int from = mine ? pass.first[x] : 0;
    const int to = mine ? from + pass.count[x] : 0;
    // Both grow with x, but for pixels beyond the source, which count nothing.
    int begin = 0, end = 0;
    bool any = false;
    for (int i = blockIdx.x * ACROSS; i < pass.size && i < (int)(blockIdx.x + 1) * ACROSS; i++) {
        if (pass.count[i] == 0)
            continue;
        if (!any)
            begin = pass.first[i];
        any = true;
        end = pass.first[i] + pass.count[i];
    }
    int sums[CHANNELS];
    for (int c = 0; c < CHANNELS; c++)
        sums[c] = 1 << (PRECISION_BITS - 1);
    const byte *row = pass.source + y * pass.source_pitch;
    for (int stage = begin; stage < end; stage += STAGED) {
        const int stage_end = stage + STAGED < end ? stage + STAGED : end;
        if (y < pass.lines)
            for (int i = threadIdx.x; i < (stage_end - stage) * CHANNELS; i += ACROSS)
                staged[threadIdx.y][i] = row[(long long)stage * CHANNELS + i];
        __syncthreads();
        const int last = to < stage_end ? to : stage_end;
        for (int i = from > stage ? from : stage; i < last; i++) {
            const int weight = pass.weights[(long long)(i - from) * pass.size + x];
            for (int c = 0; c < CHANNELS; c++)
                sums[c] += staged[threadIdx.y][(i - stage) * CHANNELS + c] * weight;
        }
        __syncthreads();
    }
    if (mine) {
        byte *pixel = pass.target + place(pass, x, y);
        for (int c = 0; c < CHANNELS; c++)
            pixel[c] = rounded(sums[c]);
    }
}

// grid: (most lines / (ACROSS * DOWN) rounded up, largest size, passes); block: (ACROSS * DOWN)
extern "C" __global__ void along_columns(const Pass *passes)
{
    const Pass pass = passes[blockIdx.z];
    const int at = blockIdx.x * (ACROSS * DOWN) + threadIdx.x;
    const int y = blockIdx.y;
    if (at >= pass.lines || y >= pass.size)
        return;
    const int count = pass.count[y];
    const byte *source = pass.source + pass.first[y] * pass.source_pitch + at;
    int sum = 1 << (PRECISION_BITS - 1);
    for (int k = 0; k < count; k++)
        sum += source[k * pass.source_pitch] * pass.weights[(long long)k * pass.size + y];
    pass.target[place(pass, at / CHANNELS, y) + at % CHANNELS] = rounded(sum);
}
