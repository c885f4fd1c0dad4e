/* Checks that fail for a reason outside of lodge: reported, not counted. */
#ifndef TESTS_GUEST_DEVIATIONS_H
#define TESTS_GUEST_DEVIATIONS_H

/* Why a failed line ("TEST: WHAT: …") of a program is exempt on an engine, or NULL. */
const char *deviation_reason(const char *engine, const char *program, const char *line);

#endif
