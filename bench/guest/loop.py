"""What Python programs do: calls, integers, lists, dictionaries, strings."""
import sys


def collatz(n, known):
    path = []
    while n != 1 and n not in known:
        path.append(n)
        n = n // 2 if n % 2 == 0 else 3 * n + 1
    length = known.get(n, 0)
    for value in reversed(path):
        length += 1
        known[value] = length
    return length


def main():
    known = {}
    longest = max(range(1, int(sys.argv[1])), key=lambda n: collatz(n, known))
    words = {}
    for value, length in known.items():
        key = str(length)[:2]
        words[key] = words.get(key, 0) + value % 1000
    print(longest, known[longest], sum(words.values()), "".join(sorted(words))[:40])


main()
