// Another interposer, of the usual kind: it finds what it stands in front of by RTLD_NEXT.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

char *getenv(const char *name) {
    static char *(*next)(const char *);
    if (!next) next = (char *(*)(const char *))dlsym(RTLD_NEXT, "getenv");
    if (!strcmp(name, "PRELOAD_ANSWER")) return "42";
    return next == getenv ? "itself" : next(name);
}
