/* OpenSSL's ciphers and digests on memory: crypto aes|sha MEBIBYTES. Prints what came out. */
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 64 << 10 };

static unsigned char plain[CHUNK], coded[CHUNK + 16];

static int encrypt(unsigned long chunks, unsigned char *result) {
    static const unsigned char key[32] = {1, 2, 3}, vector[16] = {4, 5, 6};
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    int n, ok = EVP_EncryptInit_ex(context, EVP_aes_256_cbc(), NULL, key, vector);
    while (ok && chunks-- > 0)
        ok = EVP_EncryptUpdate(context, coded, &n, plain, CHUNK);
    EVP_CIPHER_CTX_free(context);
    memcpy(result, coded + CHUNK - 32, 32);
    return ok;
}

static int digest(unsigned long chunks, unsigned char *result) {
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    unsigned n;
    int ok = EVP_DigestInit_ex(context, EVP_sha256(), NULL);
    while (ok && chunks-- > 0)
        ok = EVP_DigestUpdate(context, plain, CHUNK);
    ok = ok && EVP_DigestFinal_ex(context, result, &n);
    EVP_MD_CTX_free(context);
    return ok;
}

int main(int argc, char **argv) {
    unsigned char result[EVP_MAX_MD_SIZE] = {0};
    if (argc != 3 || (strcmp(argv[1], "aes") != 0 && strcmp(argv[1], "sha") != 0)) {
        fprintf(stderr, "usage: crypto aes|sha MEBIBYTES\n");
        return 2;
    }
    unsigned long chunks = strtoul(argv[2], NULL, 10) * ((1 << 20) / CHUNK);
    for (int i = 0; i < CHUNK; i++)
        plain[i] = (unsigned char)(i * 31 + (i >> 8));
    if (!(argv[1][0] == 'a' ? encrypt : digest)(chunks, result)) {
        fprintf(stderr, "OpenSSL failed\n");
        return 1;
    }
    for (int i = 0; i < 32; i++)
        printf("%02x", result[i]);
    printf("\n");
    return 0;
}
