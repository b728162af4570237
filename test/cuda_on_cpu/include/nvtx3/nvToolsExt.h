// Named ranges of a profile. Here they name kernels in reports.
#pragma once

int nvtxRangePushA(const char* name);
int nvtxRangePop();
