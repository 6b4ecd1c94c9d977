"""The providers and routes of the configuration in the terms of the adapters."""

from __future__ import annotations

import msgspec

from adapters.connection import Timeouts
from adapters.remote import RemoteModel
from adapters.upstream import UpstreamSettings
from gateway.config import ProviderConfig, RouteConfig, TargetConfig
from gateway.config_routing import HedgeConfig
from gateway.routing.balance import RouteSettings
from gateway.routing.hedging import HedgeSettings


def upstream_settings(provider: ProviderConfig) -> UpstreamSettings:
    """How a provider is reached."""
    return UpstreamSettings(
        name=provider.name,
        kind=provider.kind,
        base_url=provider.base_url,
        api_key=provider.api_key,
        api_key_file=provider.api_key_file,
        oauth=provider.oauth,
        aws_access_key_id=provider.aws_access_key_id,
        aws_secret_access_key=provider.aws_secret_access_key,
        aws_session_token=provider.aws_session_token,
        google_file=provider.google_file,
        google_account=provider.google_account,
        organization=provider.organization,
        project=provider.project,
        region=provider.region,
        api_version=provider.api_version,
        headers=provider.headers,
        timeouts=Timeouts(
            connect_s=provider.connect_timeout_s,
            first_byte_s=provider.first_byte_timeout_s,
            idle_s=provider.idle_timeout_s,
            total_s=provider.total_timeout_s,
        ),
        connections_max=provider.connections_max,
        proxy=provider.proxy,
        ca_file=provider.ca_file,
        verify=provider.verify,
    )


def remote_model(route: RouteConfig, target: TargetConfig) -> RemoteModel:
    """A target of a route."""
    return RemoteModel(
        name=route.name,
        model=target.model,
        kinds=target.kinds,
        context_tokens=target.context_tokens,
        description=route.description,
        capabilities=None if target.capabilities is None else frozenset(target.capabilities),
        dialect=target.dialect,
    )


def route_settings(route: RouteConfig) -> RouteSettings:
    """How a route chooses."""
    return msgspec.convert(route, RouteSettings, from_attributes=True)


def hedge_settings(hedge: HedgeConfig) -> HedgeSettings:
    """When a route asks a second target."""
    return HedgeSettings(
        after_s=None if hedge.after_ms is None else hedge.after_ms / 1000,
        percentile=hedge.percentile,
        share_max=hedge.share_max,
    )
