# One EM iteration and whole fits by mclust, as asked line by line on the standard input; every
# answer is one line. Loading and converting the data is outside of all that is timed.
suppressMessages(library(mclust))
lines <- file("stdin", "r")
say <- function(...) { cat(..., "\n"); flush(stdout()) }
number <- function(v) format(v, digits = 17)

variance_of <- function(model, d, k, sigma) {
  v <- list(modelName = model, d = d, G = k)
  if (model == "V") v$sigmasq <- as.vector(sigma)
  if (model == "E") v$sigmasq <- sigma[1]
  if (model == "VII") v$sigmasq <- sigma[1, 1, ]
  if (model == "VVI") {
    diagonals <- matrix(apply(sigma, 3, diag), d, k)
    v$scale <- exp(colMeans(log(diagonals)))
    v$shape <- sweep(diagonals, 2, v$scale, "/")
  }
  if (model == "EEE") { v$Sigma <- sigma[, , 1]; v$cholSigma <- chol(sigma[, , 1]) }
  if (model == "VVV") {
    v$sigma <- sigma
    v$cholsigma <- array(apply(sigma, 3, chol), c(d, d, k))
  }
  v
}

say("mclust", as.character(packageVersion("mclust")), "| R", as.character(getRversion()),
    "| BLAS", basename(sessionInfo()$BLAS))
while (length(line <- readLines(lines, 1)) == 1) {
  word <- strsplit(line, " ")[[1]]
  if (word[1] == "load") {
    n <- as.integer(word[3]); d <- as.integer(word[4]); k <- as.integer(word[5]); model <- word[6]
    whole <- readBin(word[2], "double", n * d + k + d * k + d * d * k)
    x <- if (d == 1) whole[1:n] else matrix(whole[1:(n * d)], n, d)
    rest <- whole[-(1:(n * d))]
    parameters <- list(
      pro = rest[1:k],
      mean = if (d == 1) rest[k + 1:k] else matrix(rest[k + 1:(d * k)], d, k),
      variance = variance_of(model, d, k, array(rest[k + d * k + 1:(d * d * k)], c(d, d, k)))
    )
    rm(whole, rest)
    now <- estep(modelName = model, data = x, parameters = parameters)
    say(number(now$loglik))
  } else if (word[1] == "next") {  # the log-likelihood after one iteration
    once <- me(data = x, modelName = model, z = now$z, control = emControl(itmax = c(1, 1)), warn = FALSE)
    say(number(once$loglik))
  } else if (word[1] == "time") {
    control <- emControl(itmax = c(1, 1))
    exact <- Sys.time()
    for (i in seq_len(as.integer(word[2])))
      me(data = x, modelName = model, z = now$z, control = control, warn = FALSE)
    say(number(as.numeric(difftime(Sys.time(), exact, units = "secs"))))
  } else if (word[1] == "fit") {
    control <- emControl(tol = rep(as.numeric(word[2]), 2), itmax = c(100000, 100000))
    exact <- Sys.time()
    fit <- em(modelName = model, data = x, parameters = parameters, control = control, warn = FALSE)
    took <- as.numeric(difftime(Sys.time(), exact, units = "secs"))
    say(number(took), number(abs(attr(fit, "info")[["iterations"]])), number(fit$loglik))
  }
}
