"""A process at its limit of descriptors or threads reads that, may call again, and then it works.

It was an InternalError ("a bug in podlink"), or the RuntimeError of a thread that did not start.
"""

from helpers.programs import run_program

_WITHOUT_DESCRIPTORS = """
    import asyncio, os, resource, podlink

    client = podlink.ClientDriver(podlink.Store())

    async def ask():
        return await client.get_linked_pod(None, "u1", "svc")

    async def main():
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        taken = []
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
        try:
            await ask()
        except podlink.OutOfResourcesError as error:
            print(error.code, error.retryable, isinstance(error, OSError), error)
        for descriptor in taken:
            os.close(descriptor)
        print(await ask())
"""


def test_no_descriptor_is_left_for_the_runtime() -> None:
    printed = run_program(_WITHOUT_DESCRIPTORS + "\n    asyncio.run(main())")
    assert printed == (
        "OUT_OF_RESOURCES True True the system gives podlink no descriptor for its I/O: "
        "Too many open files (os error 24)\nNone\n"
    )


def test_no_descriptor_is_left_for_a_loop() -> None:
    printed = run_program(
        _WITHOUT_DESCRIPTORS
        + """
    asyncio.run(ask())  # with it the runtime starts
    asyncio.run(main())
"""
    )
    assert printed == (
        "OUT_OF_RESOURCES True True the system gives podlink no descriptor to wake a loop with: "
        "Too many open files (os error 24)\nNone\n"
    )


# A limit of threads does not bind root; without address space no thread gets its stack.
_WITHOUT_THREADS = """
    import resource, podlink

    def address_space():
        with open("/proc/self/statm") as sizes:
            return int(sizes.read().split()[0]) * resource.getpagesize()

    def refused(call):
        resource.setrlimit(resource.RLIMIT_AS, (address_space() + (1 << 20), -1))
        try:
            call()
        except podlink.OutOfResourcesError as error:
            print(error.code, error.retryable, "thread" in str(error))
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (-1, -1))

    store = podlink.Store()
"""


def test_no_thread_is_left_for_the_first_driver() -> None:
    printed = run_program(
        _WITHOUT_THREADS
        + """
    refused(lambda: podlink.ClientDriver(store))
    print(podlink.ClientDriver(store).submit("get_linked_pod", None, "u1", "svc").result(60))
"""
    )
    assert printed == "OUT_OF_RESOURCES True True\nNone\n"


def test_no_thread_is_left_for_the_runtime() -> None:
    printed = run_program(
        _WITHOUT_THREADS
        + """
    client = podlink.ClientDriver(store)
    refused(lambda: client.submit("get_linked_pod", None, "u1", "svc"))
    print(client.submit("get_linked_pod", None, "u1", "svc").result(60))
"""
    )
    assert printed == "OUT_OF_RESOURCES True True\nNone\n"
