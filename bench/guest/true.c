/* The least program: what fork and exec cost without it. */
int main(void) {
    return 0;
}
