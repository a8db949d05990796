"""Subscribers that come and go at the worst moments."""

import asyncio
import random
import signal
from collections import Counter
from contextlib import AsyncExitStack

import pytest
from redis.asyncio import Redis

from huleedu_service_libs.redis_client import RedisClient
from huleedu_service_libs.redis_server import RedisServer

from .conftest import GIVE_UP_AFTER_S, HearAgain, Until  # noqa: TID252
