/* sd_notify(3)'s protocol: one datagram to a socket named in the environment. */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tiercel/http.h"
#include "tiercel/log.h"

void notify_send(const char *state)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    size_t len = path != NULL ? strlen(path) : 0;
    if (len == 0)
        return;
    if ((path[0] != '/' && path[0] != '@') || len < 2 || len >= sizeof(addr.sun_path)) {
        log_warning("net", "NOTIFY_SOCKET is no path of a socket");
        return;
    }
    memcpy(addr.sun_path, path, len);
    if (path[0] == '@') /* an abstract name starts with a NUL and ends with its length */
        addr.sun_path[0] = '\0';
    socklen_t addr_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&addr, addr_len) < 0)
        log_warning("net", "cannot notify the service manager: %s", strerror(errno));
    if (fd >= 0)
        close(fd);
}
