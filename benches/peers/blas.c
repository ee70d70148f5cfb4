/* Matrix products for mlx on a Linux CPU, to be preloaded before the reference BLAS that its wheel brings.
 *
 * That one runs a naive loop on one thread, some fifty times slower than the machine. The OpenBLAS of the package
 * scipy-openblas32 is a real one, under prefixed names; these three are all that mlx calls of CBLAS. */
#define PRODUCT(name, scalar)                                                                                          \
  void scipy_cblas_##name(int, int, int, int, int, int, scalar, const void *, int, const void *, int, scalar, void *,  \
                          int);                                                                                        \
  void cblas_##name(int order, int ta, int tb, int m, int n, int k, scalar alpha, const void *a, int lda,              \
                    const void *b, int ldb, scalar beta, void *c, int ldc) {                                           \
    scipy_cblas_##name(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);                                   \
  }
PRODUCT(sgemm, float)
PRODUCT(dgemm, double)
PRODUCT(cgemm, const void *)
