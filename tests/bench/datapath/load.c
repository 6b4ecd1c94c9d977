// Load on an HTTP server: load PORT CONNECTIONS SECONDS RATE REQUEST_FILE [REQUESTS_MAX]
// One thread over epoll. RATE 0 keeps every connection busy; otherwise so many requests a second are begun, whether or
// not earlier ones are over, and latency counts from the moment a request was due. Prints one line of JSON: requests,
// errors (any status but 200), events (empty lines in chunked answers), seconds, and latencies in microseconds.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BUFFER (256 * 1024)
#define SAMPLES (1 << 22)

typedef struct {
    int fd, busy, in_body, chunked, good;
    long body_left;
    size_t filled, sent;
    double due_us;
    char tail[8], buffer[BUFFER];
} Connection;

static char *request;
static size_t request_size;
static float *samples;
static long done, errors, events, sampled;
static int epoll_fd, port;

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void connect_to(Connection *c) {
    int on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) { perror("connect"); exit(1); }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event);
    c->busy = 0;
}

static void watch(Connection *c, unsigned wanted) {
    struct epoll_event event = {.events = wanted, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

static void push(Connection *c) {
    while (c->sent < request_size) {
        ssize_t put = send(c->fd, request + c->sent, request_size - c->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (put < 0) {
            if (errno == EAGAIN) watch(c, EPOLLIN | EPOLLOUT);
            return;
        }
        c->sent += put;
    }
    if (request_size > 65536) watch(c, EPOLLIN);
}

static void begin(Connection *c, double due_us) {
    c->busy = 1;
    c->in_body = c->chunked = 0;
    c->filled = c->sent = 0;
    memset(c->tail, 0, sizeof c->tail);
    c->due_us = due_us;
    push(c);
}

static void end(Connection *c) {
    c->busy = 0;
    done++;
    errors += !c->good;
    if (sampled < SAMPLES) samples[sampled++] = now_us() - c->due_us;
}

static void failed(Connection *c) {
    if (c->busy) { c->good = 0; end(c); }
    close(c->fd);
    connect_to(c);
}

static void take_body(Connection *c, char *data, size_t size) {
    if (!c->chunked) {
        c->body_left -= size;
        if (c->body_left <= 0) end(c);
        return;
    }
    for (char *at = data; (at = memmem(at, data + size - at, "\n\n", 2)); at += 2) events++;
    char joined[16] = {0};
    size_t kept = size < 5 ? size : 5;
    memcpy(joined, c->tail, 5);
    memcpy(joined + 5, data + size - kept, kept);
    memmove(c->tail, joined + kept, 5);
    if (!memcmp(c->tail, "0\r\n\r\n", 5)) end(c);
}

static void receive(Connection *c) {
    ssize_t got = recv(c->fd, c->buffer + c->filled, BUFFER - 1 - c->filled, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) { failed(c); return; }
    if (c->in_body) { take_body(c, c->buffer + c->filled, got); return; }
    c->filled += got;
    c->buffer[c->filled] = 0;
    char *end_of_head = strstr(c->buffer, "\r\n\r\n");
    if (!end_of_head) return;
    c->good = !strncmp(c->buffer + 9, "200", 3);
    char *length = strcasestr(c->buffer, "\r\ncontent-length:");
    c->chunked = !(length && length < end_of_head);
    c->body_left = c->chunked ? 0 : atol(length + 17);
    c->in_body = 1;
    size_t rest = c->buffer + c->filled - end_of_head - 4;
    char *body = end_of_head + 4;
    c->filled = 0;
    if (rest || !c->chunked) take_body(c, body, rest);
}

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double at(double share) { return sampled ? samples[(long)(share * (sampled - 1))] : 0; }

int main(int argc, char **argv) {
    if (argc < 6) return 2;
    port = atoi(argv[1]);
    int count = atoi(argv[2]);
    double seconds = atof(argv[3]), rate = atof(argv[4]);
    long requests_max = argc > 6 ? atol(argv[6]) : 0;
    FILE *file = fopen(argv[5], "rb");
    if (!file) return 2;
    request = malloc(64 << 20);
    request_size = fread(request, 1, 64 << 20, file);
    samples = malloc(SAMPLES * sizeof(float));
    epoll_fd = epoll_create1(0);
    Connection *all = calloc(count, sizeof(Connection));
    for (int i = 0; i < count; i++) connect_to(&all[i]);
    struct epoll_event ready[256];
    double start = now_us(), stop = start + seconds * 1e6, due = start;
    int next = 0, open = 1;
    while (open) {
        double now = now_us();
        if (now > stop || (requests_max && done >= requests_max)) {
            open = 0;
            for (int i = 0; i < count; i++) open |= all[i].busy;
            if (now > stop + 10e6) break;
        } else if (rate == 0) {
            for (int i = 0; i < count; i++) if (!all[i].busy) begin(&all[i], now);
        } else {
            for (; due <= now; due += 1e6 / rate) {
                int tried = 0;
                while (all[next].busy && tried++ < count) next = (next + 1) % count;
                if (all[next].busy) break;
                begin(&all[next], due);
            }
        }
        int found = epoll_wait(epoll_fd, ready, 256, rate == 0 ? 100 : 0);
        for (int i = 0; i < found; i++) {
            Connection *c = ready[i].data.ptr;
            if (ready[i].events & EPOLLOUT) push(c);
            if (ready[i].events & ~EPOLLOUT) receive(c);
        }
    }
    double took = (now_us() - start) / 1e6;
    qsort(samples, sampled, sizeof(float), ascending);
    printf("{\"requests\":%ld,\"errors\":%ld,\"events\":%ld,\"seconds\":%.3f,\"p50_us\":%.1f,\"p90_us\":%.1f,"
           "\"p99_us\":%.1f,\"max_us\":%.1f}\n", done, errors, events, took, at(0.5), at(0.9), at(0.99), at(1.0));
    return 0;
}
