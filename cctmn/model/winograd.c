/* The two transforms of Winograd's convolution F(4 x 4, 3 x 3), as winograd.py describes it.

   A map is H x W x C in memory, float32 or bfloat16 (a float32's upper half). Inputs and products of
   the tiles are float32: tile x 36 points x C. C is a multiple of LANES. A tile at the edge reads
   zeros outside of the map and writes nothing there.

   After a change, `pip install --no-deps --no-build-isolation --editable .` compiles it anew. */

#include <stdint.h>
#include <string.h>

#define LANES 16
typedef float floats __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2)));

/* One function per kind of processor, of which the loader takes the best that this machine has. */
#if defined(__x86_64__) && defined(CLONES)
#define EXPORT __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EXPORT
#endif
#define INLINE static inline __attribute__((always_inline))

INLINE floats load(const void *map, int64_t at, int bfloat16)
{
  if (!bfloat16)
    return *(const floats *)((const float *)map + at);
  words bits = __builtin_convertvector(*(const halves *)((const uint16_t *)map + at), words) << 16;
  floats values;
  memcpy(&values, &bits, sizeof values);
  return values;
}

INLINE void store(void *map, int64_t at, floats values, int bfloat16)
{
  if (!bfloat16) {
    *(floats *)((float *)map + at) = values;
    return;
  }
  words bits;
  memcpy(&bits, &values, sizeof bits);
  words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16; /* to the nearest, ties to even */
  words is_nan = (words)(values != values);
  rounded = (rounded & ~is_nan) | (0x7fc0 & is_nan);
  *(halves *)((uint16_t *)map + at) = __builtin_convertvector(rounded, halves);
}

INLINE void transform_input(const floats *x, floats *y)
{
  y[0] = 2 * x[0] - 3 * x[1] - 4 * x[2] + 3 * x[3] + 2 * x[4];
  y[1] = x[2] - 2 * x[1] + 5 * x[3] + 2 * x[4];
  y[2] = 5 * x[2] - 2 * x[1] - x[3] - 2 * x[4];
  y[3] = 32 * (x[1] - x[3]) + 16 * (x[2] - x[4]);
  y[4] = x[1] - x[3] + 2 * (x[4] - x[2]);
  y[5] = 2 * x[1] - 3 * x[2] - 4 * x[3] + 3 * x[4] + 2 * x[5];
}

INLINE void transform_output(const floats *x, floats *y)
{
  y[0] = x[0] + x[1] + x[2] + x[3] + x[4];
  y[1] = x[1] - x[2] + 0.5f * x[3] - 2 * x[4];
  y[2] = x[1] + x[2] + 0.25f * x[3] + 4 * x[4];
  y[3] = x[1] - x[2] + 0.125f * x[3] - 8 * x[4] + x[5];
}

INLINE void inputs(const void *map, int64_t height, int64_t width, int64_t channels, int64_t first,
                   int64_t rows, int64_t columns, float *out, int bfloat16)
{
  for (int64_t row = 0; row < rows; row++)
    for (int64_t column = 0; column < columns; column++) {
      int64_t top = 4 * (first + row) - 1, left = 4 * column - 1;
      float *tile = out + (row * columns + column) * 36 * channels;
      for (int64_t c = 0; c < channels; c += LANES) {
        floats half[6][6];
        for (int j = 0; j < 6; j++) {
          floats x[6], y[6];
          for (int i = 0; i < 6; i++) {
            int inside = top + i >= 0 && top + i < height && left + j >= 0 && left + j < width;
            x[i] = inside ? load(map, ((top + i) * width + left + j) * channels + c, bfloat16)
                          : (floats){0};
          }
          transform_input(x, y);
          for (int i = 0; i < 6; i++)
            half[i][j] = y[i];
        }
        for (int i = 0; i < 6; i++) {
          floats y[6];
          transform_input(half[i], y);
          for (int j = 0; j < 6; j++)
            store(tile, (6 * i + j) * channels + c, y[j], 0);
        }
      }
    }
}

INLINE void outputs(const float *products, const float *bias, int64_t height, int64_t width,
                    int64_t channels, int64_t first, int64_t rows, int64_t columns, void *map,
                    int bfloat16)
{
  for (int64_t row = 0; row < rows; row++)
    for (int64_t column = 0; column < columns; column++) {
      int64_t top = 4 * (first + row), left = 4 * column;
      const float *tile = products + (row * columns + column) * 36 * channels;
      for (int64_t c = 0; c < channels; c += LANES) {
        floats half[4][6];
        for (int j = 0; j < 6; j++) {
          floats x[6], y[4];
          for (int i = 0; i < 6; i++)
            x[i] = load(tile, (6 * i + j) * channels + c, 0);
          transform_output(x, y);
          for (int i = 0; i < 4; i++)
            half[i][j] = y[i];
        }
        floats added = load(bias, c, 0);
        for (int i = 0; i < 4 && top + i < height; i++) {
          floats y[4];
          transform_output(half[i], y);
          for (int j = 0; j < 4 && left + j < width; j++)
            store(map, ((top + i) * width + left + j) * channels + c, y[j] + added, bfloat16);
        }
      }
    }
}

/* The inputs of the tiles of `rows` rows from row `first` on, `columns` of them in each. */
EXPORT void cctmn_winograd_inputs(const void *map, int64_t height, int64_t width, int64_t channels,
                                  int64_t first, int64_t rows, int64_t columns, float *out,
                                  int64_t bfloat16)
{
  if (bfloat16)
    inputs(map, height, width, channels, first, rows, columns, out, 1);
  else
    inputs(map, height, width, channels, first, rows, columns, out, 0);
}

/* Write the outputs of these tiles to the map, and add one bias per channel. */
EXPORT void cctmn_winograd_outputs(const float *products, const float *bias, int64_t height,
                                   int64_t width, int64_t channels, int64_t first, int64_t rows,
                                   int64_t columns, void *map, int64_t bfloat16)
{
  if (bfloat16)
    outputs(products, bias, height, width, channels, first, rows, columns, map, 1);
  else
    outputs(products, bias, height, width, channels, first, rows, columns, map, 0);
}
