"""Tracing where processes begin and end: forks, exits, and programs without OpenTelemetry."""

from helpers.programs import run_program


def test_what_waits_at_the_end_is_exported() -> None:
    printed = run_program("""
        import asyncio, podlink, podlink.otel
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter

        class Print(SpanExporter):
            down = False

            def export(self, spans):
                for span in spans:
                    print(span.name, "late" if self.down else "in time", flush=True)

            def shutdown(self):
                self.down = True

        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(Print()))
        trace.set_tracer_provider(provider)
        podlink.otel.enable()
        # Nobody takes what waits before the end.
        podlink._bridge.observe(podlink._bridge._observer, None)

        async def main():
            client = podlink.ClientDriver(podlink.Store())
            await client.set_linked_pod_if_absent(None, "u1", "svc", 1)

        asyncio.run(main())
    """)
    told = printed.splitlines()
    assert sorted(told) == [
        "podlink.set_if_absent in time",
        "podlink.set_linked_pod_if_absent in time",
    ]


def test_a_forked_child_makes_spans_of_its_own() -> None:
    printed = run_program("""
        import asyncio, os, podlink, podlink.otel
        from helpers.traces import provider_with_memory, told

        provider, exporter = provider_with_memory()
        podlink.otel.enable(provider)

        async def link():
            client = podlink.ClientDriver(podlink.Store())
            await client.set_linked_pod_if_absent(None, "u1", "svc", 1)

        asyncio.run(link())
        podlink.otel.flush()
        exporter.clear()
        child = os.fork()
        if child == 0:
            asyncio.run(link())
            podlink.otel.flush()
            spans = told(exporter.get_finished_spans())
            print(sorted(span["name"] for span in spans), flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        asyncio.run(link())
        podlink.otel.flush()
        print(sorted(span.name for span in exporter.get_finished_spans()))
    """)
    expected = "['podlink.set_if_absent', 'podlink.set_linked_pod_if_absent']"
    assert printed.splitlines() == [expected, expected]


def test_podlink_does_not_need_opentelemetry() -> None:
    printed = run_program("""
        import sys
        sys.modules["opentelemetry"] = None
        import podlink
        assert podlink.Store()
        try:
            import podlink.otel
        except ImportError as error:
            print(type(error).__name__)
        print(any(name.startswith("opentelemetry.") for name in sys.modules))
    """)
    assert printed.splitlines() == ["ModuleNotFoundError", "False"]


def test_only_the_api_is_imported() -> None:
    printed = run_program("""
        import sys
        import podlink.otel
        print([name for name in sys.modules if name.startswith("opentelemetry.sdk")])
    """)
    assert printed == "[]\n"
