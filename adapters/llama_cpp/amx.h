/*
 * Included before every file when llama.cpp is compiled (see the Makefile).
 *
 * Older versions of GCC, such as Debian 12's, believe that _tile_loadconfig reads 8 bytes. It reads 64, so they leave
 * out what llama.cpp writes to the others, and its first product of matrices on a CPU with AMX is a segmentation fault.
 */
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#undef _tile_loadconfig
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg\t%X0" : : "m"(*(const char (*)[64])(config)))
#endif
