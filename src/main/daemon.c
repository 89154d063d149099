/* daemonize: who starts it sees whether it could start. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "main/main_priv.h"

static int ready_fd = -1; /* written once there is something to connect to */

static void take_null(int fd)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    if (null >= 0) {
        (void)dup2(null, fd);
        close(null);
    }
}

/* The parent's end. */
static void wait_for(pid_t child, int fd)
{
    char byte;
    ssize_t n;
    int status = 0;

    do
        n = read(fd, &byte, 1);
    while (n < 0 && errno == EINTR);
    if (n == 1)
        _exit(0);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    _exit(WIFEXITED(status) && WEXITSTATUS(status) != 0 ? WEXITSTATUS(status) : 1);
}

bool daemon_begin(void)
{
    int fds[2];

    fflush(NULL);
    if (pipe2(fds, O_CLOEXEC) != 0)
        return false;
    pid_t child = fork();
    if (child < 0) {
        int why = errno;
        close(fds[0]);
        close(fds[1]);
        errno = why;
        return false;
    }
    if (child > 0) {
        close(fds[1]);
        wait_for(child, fds[0]);
    }
    close(fds[0]);
    ready_fd = fds[1];
    take_null(STDIN_FILENO);
    return setsid() >= 0;
}

void daemon_ready(void)
{
    if (ready_fd < 0)
        return;
    take_null(STDOUT_FILENO);
    take_null(STDERR_FILENO);
    while (write(ready_fd, "", 1) < 0 && errno == EINTR) {
    }
    close(ready_fd);
    ready_fd = -1;
}
