# softImpute-ALS on the matrix in a folder, timed by itself: R's own processor time, of the calls of softImpute alone.
#
# Rscript soft_impute.R run FOLDER          one call of maxit steps
# Rscript soft_impute.R search FOLDER       the least number of steps, to 5 %, whose result reaches the target
#
# Reads rows, cols (int32, from 0), values (double) and arguments.txt: n, m, entries, lambda, rank.max, maxit,
# target of the objective, limit of CPU seconds, and the multiple of lambda to start with (0 for a cold start), where
# it stays until thresh = 1e-4.  Writes result.txt (CPU seconds, steps, columns), blas.txt and u, d, v.
#
# A search goes on from where it stopped, without the last thresholding, which maxit = 0 does: the steps are those
# that one call would make.

suppressPackageStartupMessages(library(softImpute))
given <- commandArgs(trailingOnly = TRUE)
at <- function(name) file.path(given[2], name)
arguments <- scan(at("arguments.txt"), quiet = TRUE)
n <- arguments[1]; m <- arguments[2]; size <- arguments[3]
lambda <- arguments[4]; rank <- arguments[5]; maxit <- arguments[6]; target <- arguments[7]; limit <- arguments[8]
multiple <- arguments[9]

x <- Incomplete(readBin(at("rows"), "integer", size) + 1L, readBin(at("cols"), "integer", size) + 1L,
                readBin(at("values"), "double", size))
if (!all(dim(x) == c(n, m))) stop("the last row or column has no entry")

seconds <- 0
fit <- function(maxit, ..., factor = 1, thresh = 0) {
  start <- proc.time()
  found <- suppressWarnings(softImpute(x, rank.max = rank, lambda = factor * lambda, type = "als",
                                       thresh = thresh, maxit = maxit, ...))
  seconds <<- seconds + sum((proc.time() - start)[c(1, 2, 4, 5)])  # user, system, and those of child processes
  found
}
objective <- function(found) {
  scaled <- found$u * outer(rep(1, nrow(found$u)), found$d)
  0.5 * sum((x@x - softImpute:::suvC(scaled, found$v, x@i, x@p))^2) + lambda * sum(found$d)
}

set.seed(0)
state <- if (multiple > 0) fit(100, factor = multiple, thresh = 1e-4) else NULL
if (given[1] == "run") {
  steps <- maxit
  found <- fit(maxit, warm.start = state)
} else {
  steps <- 0
  repeat {
    more <- max(1, floor(steps / 20))
    state <- fit(more, warm.start = state, final.svd = FALSE)
    steps <- steps + more
    so_far <- seconds
    found <- fit(0, warm.start = state)
    if (objective(found) <= target || seconds > limit || steps >= maxit) break
    seconds <- so_far
  }
}
for (name in c("u", "d", "v")) writeBin(as.vector(found[[name]]), at(name))
cat(basename(dirname(extSoftVersion()[["BLAS"]])), file = at("blas.txt"))
cat(seconds, steps, length(found$d), "\n", file = at("result.txt"))
