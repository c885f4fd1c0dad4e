#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

#include "net/net.h"

/* A port number that ends at `end` exactly; 0: it is none. */
static uint16_t parse_port(const char *text, const char *end) {
    unsigned long port = 0;
    if (text == end)
        return 0;
    for (; text != end; text++) {
        if (*text < '0' || *text > '9')
            return 0;
        port = port * 10 + (unsigned long)(*text - '0');
        if (port > UINT16_MAX)
            return 0;
    }
    return (uint16_t)port;
}

static int parse_address(const char *text, size_t length, struct in_addr *address,
                         struct error *err) {
    char copy[INET_ADDRSTRLEN];
    if (length >= sizeof copy)
        return error_set(err, -EINVAL, "the address is not an IPv4 address");
    memcpy(copy, text, length);
    copy[length] = '\0';
    if (inet_pton(AF_INET, copy, address) != 1)
        return error_set(err, -EINVAL, "\"%s\" is not an IPv4 address", copy);
    return 0;
}

/* The protocol behind `slash`, or the end. */
static int parse_protocol(const char *slash, bool *udp, struct error *err) {
    *udp = strcmp(slash, "/udp") == 0;
    if (*udp || *slash == '\0' || strcmp(slash, "/tcp") == 0)
        return 0;
    return error_set(err, -EINVAL, "protocol \"%s\" is neither tcp nor udp", slash + 1);
}

static int parse(const char *text, struct net_publish *publish, struct error *err) {
    const char *end = strchrnul(text, '/');
    const char *second = memrchr(text, ':', (size_t)(end - text));
    if (second == NULL)
        return error_set(err, -EINVAL, "HOST:GUEST wanted, for example 8080:80");
    const char *first = memrchr(text, ':', (size_t)(second - text));
    *publish = (struct net_publish){.host_address.s_addr = htonl(INADDR_LOOPBACK)};
    if (first != NULL) {
        int rc = parse_address(text, (size_t)(first - text), &publish->host_address, err);
        if (rc != 0)
            return rc;
    }
    publish->host_port = parse_port(first == NULL ? text : first + 1, second);
    publish->guest_port = parse_port(second + 1, end);
    if (publish->host_port == 0 || publish->guest_port == 0)
        return error_set(err, -EINVAL, "ports are numbers from 1 to 65535");
    return parse_protocol(end, &publish->udp, err);
}

int net_parse_publish(const char *text, struct net_publish *publish, struct error *err) {
    int rc = parse(text, publish, err);
    if (rc != 0)
        error_prefix(err, "cannot publish \"%s\"", text);
    return rc;
}
