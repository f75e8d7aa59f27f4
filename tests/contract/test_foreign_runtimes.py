"""Where podlink does not work, the first call says so and names what is needed."""

from helpers.programs import run_program


def test_trio_is_named() -> None:
    printed = run_program("""
        import podlink, trio

        async def main():
            client = podlink.ClientDriver(podlink.Store())
            try:
                await client.compute_linked_pod(None, "u1", "svc")
            except podlink.IllegalStateError as error:
                print(error)
                print(error.details["allowed"])

        trio.run(main)
    """)
    assert printed == (
        "podlink needs asyncio, and found trio\na running event loop of asyncio, or submit()\n"
    )


def test_a_call_without_a_loop_says_what_it_needs() -> None:
    printed = run_program("""
        import podlink

        called = podlink.ClientDriver(podlink.Store()).get_linked_pod(None, "u1", "svc")
        try:
            called.send(None)
        except podlink.IllegalStateError as error:
            print(error)
    """)
    assert printed == "podlink needs asyncio, and found no running event loop\n"


# eventlet warns at its import that it is deprecated.
_EVENTLET = """
    import warnings

    warnings.simplefilter("ignore")
    import eventlet

    eventlet.monkey_patch({patches})
    import podlink

    try:
        client = podlink.ClientDriver(podlink.Store())
    except podlink.IllegalStateError as error:
        print(error)
    else:
        print(client.submit("get_linked_pod", None, "u1", "svc").result(60))
"""


def test_eventlet_is_refused_by_the_first_driver() -> None:
    # It takes select.poll away, and the thread that delivers results ended with that: a future of
    # submit was never settled.
    printed = run_program(_EVENTLET.format(patches=""))
    assert printed == (
        "podlink needs threads of the system, and eventlet has patched thread and select\n"
    )


def test_eventlet_that_leaves_threads_alone_is_not_refused() -> None:
    printed = run_program(_EVENTLET.format(patches="thread=False, select=False"))
    assert printed == "None\n"
