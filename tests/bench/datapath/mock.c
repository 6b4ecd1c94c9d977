// A provider that costs next to nothing: mock PORT CHUNKS CHUNK_INTERVAL_MS CHUNK_BYTES
// One thread over epoll. A request whose body holds "stream":true is answered with CHUNKS events, one each interval,
// then the usage and [DONE]; any other with one JSON object of about 1 KB. Requests are read by their Content-Length.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS 8192
#define BUFFER (64 * 1024)

typedef struct {
    char head[BUFFER];
    size_t filled;      // of the head and the beginning of the body
    long body_left;     // -1 while the head is read
    int streaming, wants_stream, sent;
    double next_ms;
} Connection;

static Connection *connections[CONNECTIONS];
static char unary[16384], chunk[8192], first[512], last[1024];
static size_t unary_size, chunk_size, first_size, last_size;
static int chunks_max, epoll_fd, open_streams;
static double interval_ms;

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static size_t framed(char *into, const char *payload) {
    char event[8192];
    int size = snprintf(event, sizeof event, "data: %s\n\n", payload);
    return sprintf(into, "%x\r\n%s\r\n", size, event);
}

static void prepare(int chunk_bytes) {
    char text[4096], payload[8192];
    memset(text, 'x', sizeof text);
    snprintf(payload, sizeof payload,
             "{\"id\":\"chatcmpl-mock\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"mock\",\"choices\":[{"
             "\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%.700s\"},\"finish_reason\":\"stop\"}],"
             "\"usage\":{\"prompt_tokens\":200,\"completion_tokens\":180,\"total_tokens\":380}}", text);
    unary_size = sprintf(unary, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                         strlen(payload), payload);
    first_size = sprintf(first, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
    int filler = chunk_bytes - 80 > 0 ? chunk_bytes - 80 : 1;
    snprintf(payload, sizeof payload, "{\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"%.*s\"}}]}", filler, text);
    chunk_size = framed(chunk, payload);
    last_size = framed(last, "{\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}");
    last_size += framed(last + last_size, "{\"id\":\"c\",\"choices\":[],\"usage\":{\"prompt_tokens\":200,"
                                          "\"completion_tokens\":100,\"total_tokens\":300}}");
    last_size += framed(last + last_size, "[DONE]");
    last_size += sprintf(last + last_size, "0\r\n\r\n");
}

static void drop(int fd) {
    if (connections[fd]->streaming) open_streams--;
    free(connections[fd]);
    connections[fd] = NULL;
    close(fd);
}

static int put(int fd, const char *data, size_t size) {
    if (write(fd, data, size) == (ssize_t)size) return 1;
    drop(fd);
    return 0;
}

static int answer(int fd) {
    Connection *c = connections[fd];
    if (!c->wants_stream) return put(fd, unary, unary_size);
    c->streaming = 1;
    open_streams++;
    c->sent = 0;
    c->next_ms = now_ms() + interval_ms;
    return put(fd, first, first_size);
}

static void receive(int fd) {
    Connection *c = connections[fd];
    static char sink[1 << 20];
    for (;;) {
        char *into = c->body_left > 0 ? sink : c->head + c->filled;
        size_t room = c->body_left > 0 ? sizeof sink : BUFFER - 1 - c->filled;
        ssize_t got = read(fd, into, room);
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
        if (got <= 0) { drop(fd); return; }
        if (c->body_left > 0) {
            c->body_left -= got;
        } else {
            c->filled += got;
            c->head[c->filled] = 0;
            char *end = strstr(c->head, "\r\n\r\n");
            if (!end) continue;
            char *length = strcasestr(c->head, "content-length:");
            c->body_left = (length && length < end ? atol(length + 15) : 0) - (long)(c->head + c->filled - end - 4);
            c->wants_stream = strstr(end, "\"stream\":true") != NULL;
        }
        if (c->body_left <= 0) {
            c->filled = 0;
            c->body_left = -1;
            if (!answer(fd)) return;
        }
    }
}

static void tick(double now) {
    for (int fd = 0; open_streams && fd < CONNECTIONS; fd++) {
        Connection *c = connections[fd];
        if (!c || !c->streaming || c->next_ms > now) continue;
        c->next_ms += interval_ms;
        if (c->sent++ < chunks_max) {
            put(fd, chunk, chunk_size);
        } else {
            c->streaming = 0;
            open_streams--;
            put(fd, last, last_size);
        }
    }
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    chunks_max = atoi(argv[2]);
    interval_ms = atof(argv[3]);
    prepare(atoi(argv[4]));
    int listening = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listening, (struct sockaddr *)&address, sizeof address) || listen(listening, 4096)) return 1;
    epoll_fd = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listening}, events[256];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listening, &event);
    for (;;) {
        int ready = epoll_wait(epoll_fd, events, 256, open_streams ? 1 : 1000);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd != listening) {
                if (connections[fd]) receive(fd);
                continue;
            }
            int made = accept4(listening, NULL, NULL, SOCK_NONBLOCK);
            if (made < 0) continue;
            if (made >= CONNECTIONS) { close(made); continue; }
            setsockopt(made, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            connections[made] = calloc(1, sizeof(Connection));
            connections[made]->body_left = -1;
            struct epoll_event wanted = {.events = EPOLLIN, .data.fd = made};
            epoll_ctl(epoll_fd, EPOLL_CTL_ADD, made, &wanted);
        }
        if (open_streams) tick(now_ms());
    }
}
