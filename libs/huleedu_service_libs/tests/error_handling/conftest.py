from libs.huleedu_service_libs.tests.captured_logs import logs

__all__ = ["logs"]
