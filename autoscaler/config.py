"""Configuration: one TOML file in, one frozen `Config` out, or every problem with it at once.

The core imports its configuration from here and only from here. The values are in `config_types`.
"""

from autoscaler.config_types import (
    Address,
    AutoscalerConfig,
    Caps,
    Config,
    ConfigError,
    ImageConfig,
    ImageHooks,
    PoolConfig,
    Problem,
    RequeueConfig,
    SpillConfig,
    SpotConfig,
    StockConfig,
    StockWindow,
    TlsConfig,
    WaitConfig,
)

__all__ = [
    "Address",
    "AutoscalerConfig",
    "Caps",
    "Config",
    "ConfigError",
    "ImageConfig",
    "ImageHooks",
    "PoolConfig",
    "Problem",
    "RequeueConfig",
    "SpillConfig",
    "SpotConfig",
    "StockConfig",
    "StockWindow",
    "TlsConfig",
    "WaitConfig",
]
