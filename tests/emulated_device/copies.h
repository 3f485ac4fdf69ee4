// Copies between host and devices. Each is counted, checked for what is device memory, and kept in stream order.
#pragma once
#include "paddle/phi/backends/device_ext.h"

namespace emulated {

void fill_copies(C_DeviceInterface* table);

}  // namespace emulated
