"""Mistakes in the way of the heartbeats, and in what ranks decide by them."""

from tests.mutations.mutation import Mutation, mistakes

DIGEST = ("tests/world/test_digest.py",)
STALL = ("tests/world/test_stall.py",)
TREE = ("tests/world/test_tree.py",)

MUTATIONS = [
    Mutation("world/tree.py", "(rank - 1) // FAN_OUT", "rank // FAN_OUT", TREE),
    Mutation(
        "world/tree.py", "first + FAN_OUT, size", "first + FAN_OUT - 1, size", TREE
    ),
    Mutation("world/tree.py", "(time + seconds, message)", "(time, message)", TREE),
    Mutation("world/tree.py", "(now - time, sender)", "(0.0, sender)", TREE),
    Mutation(
        "world/tree.py",
        "return message.including(Peer(self._rank, heartbeat))",
        "return message",
        TREE,
    ),
    Mutation("world/digest.py", "age=peer.age + seconds", "age=peer.age", TREE),
    Mutation("world/digest.py", "-peer.silence", "peer.silence", TREE),
    Mutation("world/digest.py", "if part.sequence == sequence", "if part", DIGEST),
    Mutation(
        "world/digest.py",
        "_idle(peer) + peer.age",
        "-_idle(peer) - peer.age",
        DIGEST,
    ),
    Mutation("world/stall.py", "peer.silence > limit", "peer.age > limit", TREE),
    Mutation("world/stall.py", "if peer.rank != self.rank", "if peer", STALL),
    Mutation(
        "world/stall.py",
        "and peer.status.sequence <",
        "or peer.status.sequence <",
        STALL,
    ),
    Mutation("world/stall.py", "return not all(", "return not any(", STALL),
    Mutation("world/stall.py", "and self.idle < limit", "", STALL),
    Mutation(
        "world/stall.py", "return at_work or self.peers", "return self.peers", STALL
    ),
    *mistakes(
        "world/activity.py",
        ("tests/world/test_activity.py",),
        [
            ("        if now - self._sampled > _STOPPED:", "        if False:"),
            ("ctypes.pythonapi.Py_AddPendingCall(self._callback, None)", "pass"),
            ("            self._cpu, self._progress = cpu, now", "            pass"),
        ],
        ranks=(),
    ),
    *mistakes(
        "world/channel.py",
        ("tests/world/test_channel.py",),
        [
            ("if rank != local)", "if rank > local)"),
            (
                "            self._receiving = self._comm.Irecv",
                "            self._comm.Irecv",
            ),
            ("if earlier is None or earlier[0].Test():", "if earlier is None:"),
        ],
        ranks=(3,),
    ),
]
