// A process that maps N files given as arguments, executable, as a loader would, and stays for 25 s.
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        int fd = open(argv[i], O_RDONLY);
        if (fd < 0 || mmap(0, 4096 * 64, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0) == MAP_FAILED) {
            perror(argv[i]);
            return 2;
        }
        close(fd);
    }
    puts("ready");
    fflush(stdout);
    sleep(25);
    return 0;
}
