#include <stdio.h>

#include "cli/cli.h"
#include "cli/exit_codes.h"

/* Use: eval "$(lodge completion)" */
int cmd_completion(int argc, char **argv) {
    puts("_lodge() {\n"
         "    local word=${COMP_WORDS[COMP_CWORD]} words=\n"
         "    if [ \"$COMP_CWORD\" = 1 ]; then\n"
         "        words='");
    for (const struct verb *verb = verbs; verb->name != NULL; verb++)
        printf("%s ", verb->name);
    puts("'\n    else\n        case ${COMP_WORDS[1]} in");
    for (const struct verb *verb = verbs; verb->name != NULL; verb++) {
        printf("        %s) words='", verb->name);
        for (const struct option_spec *o = verb->options; o != NULL && o->name != NULL; o++)
            if (o->help != NULL)
                printf("--%s ", o->name);
        puts("' ;;");
    }
    puts("        esac\n"
         "        case ${COMP_WORDS[1]} in\n"
         "        run|create) words+=\" $(lodge image ls 2>/dev/null | sed '1d; s/ .*//')\" ;;\n"
         "        esac\n"
         "    fi\n"
         "    COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))\n"
         "    [ \"${#COMPREPLY[@]}\" -gt 0 ] || COMPREPLY=($(compgen -f -- \"$word\"))\n"
         "}\n"
         "complete -F _lodge lodge");
    return EXIT_OK;
}
