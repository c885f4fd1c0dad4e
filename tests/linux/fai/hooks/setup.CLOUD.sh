# These have nothing to do here, which is an error to FAI: answers for packages, booting over a network, a log server.
skiptask debconf chboot savelog
