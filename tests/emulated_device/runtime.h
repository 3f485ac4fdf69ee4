// From Paddle's handles to ours.
#pragma once
#include "device.h"
#include "paddle/phi/backends/device_ext.h"

namespace emulated {

Device& device_of(C_Device device);

}  // namespace emulated
