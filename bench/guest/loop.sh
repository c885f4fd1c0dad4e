# A shell's own work: arithmetic, expansion, tests, functions.
step() {
    total=$((total + $1 % 7))
    case $1 in
    *9) word=${word#a}b ;;
    *) word=a$word ;;
    esac
    [ ${#word} -lt 20 ] || word=
}
i=0 total=0 word=
while [ $i -lt "$1" ]; do
    step $i
    i=$((i + 1))
done
echo $total $word
